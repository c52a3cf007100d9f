"""Fusion: one score of all components by hand, what opinions may and may not do to it, and how far it may be off."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import readings_of

from askance.answers import FUSED
from askance.errors import CalibrationError
from askance.judgement import Fusion, Readings
from askance.judgement.arrays import Doubles
from askance.judgement.background import Background
from askance.judgement.fusion import roots
from askance.judgement.margins import around, spread

NAMES = ("x/a", "x/b", "y/c")
CLEAN = readings_of({"x/a": np.array([1.0, 2.0, 3.0]), "x/b": np.array([30.0, 10.0, 20.0])}, {"x/a"})


def drawn(count: int, seed: int, shift: float = 0.0) -> Readings:
    """Three components, the second untypical either way, of images in three classes."""
    g = np.random.default_rng(seed)
    values = g.standard_normal((3, count)) + shift
    return readings_of(dict(zip(NAMES, values, strict=True)), {"x/b"}, 3 * g.standard_normal((count, 3)))


def opinions(seed: int, count: int = 3, scale: float = 1.0) -> tuple[Doubles, Doubles]:
    """Weights of either sign, [count, 12], and biases."""
    g = np.random.default_rng(seed)
    weights = scale * g.standard_normal((count, 12))
    return weights, scale * g.standard_normal(count)


def test_untrained_by_hand() -> None:
    """1% over the harmonic mean of the p-values of all that speaks, and 1% over that of the doubt, here 1.

    `a` is read on both sides, `b` on the upper one; and each once more less what the answer lets expect, which under
    equal answers has the same p-value.
    """
    fusion = Fusion.untrained(Background.fit(CLEAN))
    asked = readings_of({"x/a": np.array([2.5, 0.0, 2.0]), "x/b": np.array([20.0, 40.0, 0.0])})
    p_a_high, p_a_low = [0.5, 1.0, 0.75], [0.75, 0.25, 0.75]  # 1 + at least, 1 + at most, over 4
    p_b = [0.75, 0.25, 1.0]
    expected = [
        math.log(0.003 * sum(1 / p for p in three) / 3 + 0.003) for three in zip(p_a_high, p_a_low, p_b, strict=True)
    ]
    assert fusion.score(asked).tolist() == pytest.approx(expected, abs=1e-12)
    assert fusion.names == ("x/a", "x/b")

    # More untypical in any component, on a side that counts, is never less suspicious.
    def of(a: float, b: float) -> float:
        return float(fusion.score(readings_of({"x/a": np.array([a]), "x/b": np.array([b])}))[0])

    assert of(9, 99) > of(9, 15)
    assert of(-9, 15) > of(2, 15)
    assert of(2, -99) == pytest.approx(math.log(0.003 * (4 / 3 + 4 / 3 + 1) / 3 + 0.003))


def test_doubt_speaks_by_itself() -> None:
    margin = np.arange(1.0, 200.0)
    logits = np.stack([margin, np.zeros(199)], axis=1)
    fusion = Fusion.untrained(Background.fit(readings_of({"a": np.zeros(199)}, logits=logits)))
    asked = readings_of({"a": np.zeros(2)}, logits=np.array([[100.0, 0.0], [2.0, 0.0]]))
    expected = [math.log(0.003 + 0.003 / (101 / 200)), math.log(0.003 + 0.003 / (3 / 200))]
    assert fusion.score(asked).tolist() == pytest.approx(expected)


def test_trained_by_hand() -> None:
    """The odds of two trained opinions, one of them with a negative weight, and of the untrained ones, added."""
    background = Background.fit(readings_of(CLEAN.components))
    weights = np.zeros((2, 8))
    # columns: a, b, what is left of a, of b, above; then the same below
    weights[0, 0], weights[0, 1], weights[0, 5] = 2.0, 0.5, -0.25
    weights[1, 3], weights[1, 6] = 3.0, 1.0
    fusion = Fusion(background, weights, np.array([-1.0, 0.5]).astype(np.float64))
    asked = readings_of({"x/a": np.array([2.5]), "x/b": np.array([20.0])})

    def root(p: float) -> float:
        return math.sqrt(1 - 2 * math.log(p)) - 1

    a, b, a_below, b_below = root(0.5), root(0.75), root(0.75), root(0.75)
    assert fusion.features(asked).flatten().tolist() == pytest.approx([a, b] * 2 + [a_below, b_below] * 2)
    odds = math.exp(-1 + 2 * a + 0.5 * b - 0.25 * b_below) + math.exp(0.5 + 3 * b + a_below)
    odds += 0.003 * (1 / 0.5 + 1 / 0.75) / 2 + 0.003
    assert float(fusion.score(asked)[0]) == pytest.approx(math.log(odds))


def test_roots_by_hand() -> None:
    assert roots(np.array([0.0, 1.5, 4.0, 12.0]).astype(np.float64)).tolist() == [0.0, 1.0, 2.0, 4.0]
    assert roots(np.array([1e-6])) == pytest.approx(1e-6, rel=1e-5)  # sqrt alone would have an infinite slope


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.01, 1.0, 100.0]), st.integers(1, 5), st.floats(-5, 5))
def test_no_opinion_takes_the_score_below_the_untrained(seed: int, scale: float, count: int, shift: float) -> None:
    background = Background.fit(drawn(40, seed), drawn(30, seed + 1, 0.3))
    asked = drawn(20, seed + 2, shift)
    floor = Fusion.untrained(background).score(asked)
    found = Fusion(background, *opinions(seed, count, scale)).score(asked)
    assert np.isfinite(found).all()
    assert (found >= floor - 1e-12 * np.abs(floor)).all()


def test_an_opinion_may_have_either_sign() -> None:
    background = Background.fit(drawn(40, 0))
    weights, biases = opinions(0, 1)
    asked = drawn(20, 1, 1.0)
    up = Fusion(background, weights, biases).score(asked)
    assert np.array_equal(Fusion(background, weights - 1, biases).score(asked) < up, np.ones(20, dtype=np.bool_))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.floats(-3, 3))
def test_the_range_holds_every_score_within_the_margins(seed: int, trained: bool, shift: float) -> None:
    background = Background.fit(drawn(60, seed), drawn(30, seed + 1, 0.3))
    fusion = Fusion(background, *opinions(seed)) if trained else Fusion.untrained(background)
    fusion = fusion.levelled(drawn(60, seed))
    asked = drawn(8, seed + 2, shift)
    _, low, high = fusion.bounds(asked)[FUSED]
    room = 1e-9
    own = fusion.score(asked)
    assert (low <= own + room).all()
    assert (own <= high + room).all()
    raw = asked.stacked(NAMES)
    off = around(raw, spread(background.clean[:3]))[1] - raw
    g = np.random.default_rng(seed)
    for _ in range(8):
        moved = raw + 0.98 * off * (2 * g.random(raw.shape) - 1)
        logits = asked.logits * (1 + 1e-6 * g.standard_normal(asked.logits.shape))
        other = fusion.score(readings_of(dict(zip(NAMES, moved, strict=True)), logits=logits))
        assert (low <= other + room).all()
        assert (other <= high + room).all()


def test_levelled_by_hand() -> None:
    """Three classes: one as suspicious as all are, one more so, one of which no image is there."""
    clean = drawn(400, 0)
    clean.components["x/a"][clean.predicted == 1] += 3
    kept = clean.where(clean.predicted != 2)
    fusion = Fusion.untrained(Background.fit(drawn(400, 1)))
    levelled = fusion.levelled(kept)
    scores, predicted = fusion.score(kept), kept.predicted
    tail = np.quantile(scores, 0.95)
    for index in (0, 1):
        own = scores[predicted == index]
        offset = (np.quantile(own, 0.95) - tail) * len(own) / (len(own) + 50)
        assert float(levelled.offsets[index]) == pytest.approx(offset)
    assert levelled.offsets[0] < 0 < levelled.offsets[1]
    assert levelled.offsets[2] == 0
    assert np.allclose(levelled.score(kept), scores - levelled.offsets[predicted])
    assert np.array_equal(fusion.offsets, np.zeros(3))


# The same draws each time: of 600, two are as level as can be, within an image, before they are levelled
@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_levelling_brings_the_shares_of_classes_together(seed: int) -> None:
    """Of flagged clean images; and what is level is left so, but for what shrinking leaves."""
    clean = drawn(900, seed)
    clean.components["x/a"][clean.predicted == 1] += 2
    fusion = Fusion.untrained(Background.fit(clean))
    levelled = fusion.levelled(clean)

    def worst(one: Fusion) -> float:
        scores, predicted = one.score(clean), clean.predicted
        flagged = scores > np.quantile(scores, 0.95)
        return max(float(flagged[predicted == index].astype(np.float64).mean()) for index in range(3))

    assert worst(levelled) <= worst(fusion)
    assert worst(levelled) < 0.1


def test_the_range_of_a_margin_on_a_step_of_doubt() -> None:
    """Which side of a clean image's margin one lies on, the last bits of its logits decide."""
    clean = readings_of({"a": np.zeros(3)}, logits=np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]))
    fusion = Fusion.untrained(Background.fit(clean))
    on_it = readings_of({"a": np.zeros(1)}, logits=np.array([[2.0, 0.0]]))
    _, low, high = fusion.bounds(on_it)[FUSED]  # among those that are all but the same
    assert low < fusion.score(on_it) < high
    assert float((high - low)[0]) < 1e-8  # for the last bits of a sum
    assert float(low[0]) == pytest.approx(math.log(0.003 + 0.003 / (3 / 4)))
    beside = readings_of({"a": np.zeros(1)}, logits=np.array([[1.9955, 0.0]]))  # .004 is the tolerance
    _, low, high = fusion.bounds(beside)[FUSED]
    assert float(low[0]) == pytest.approx(math.log(0.003 + 0.003 / (3 / 4)))
    assert float(high[0]) == pytest.approx(math.log(0.003 + 0.003 / (2 / 4)))


@pytest.mark.parametrize("shape", [(1, 4), (2, 8), (8,), (1, 9)], ids=["few", "more opinions", "flat", "many"])
def test_other_weights_are_refused(shape: tuple[int, ...]) -> None:
    message = r"fusion takes weights of shape \[1, 8\], got \["
    with pytest.raises(CalibrationError, match=message):
        Fusion(Background.fit(CLEAN), np.zeros(shape), np.zeros(1))


@pytest.mark.parametrize("names", [("x/a",), ("x/a", "y/c"), ()], ids=["fewer", "another", "none"])
def test_a_component_that_is_missing(names: tuple[str, ...]) -> None:
    fusion = Fusion.untrained(Background.fit(CLEAN))
    asked = readings_of(dict.fromkeys(names or ("z",), np.zeros(1)))
    for ask in (fusion.score, fusion.features, fusion.bounds):
        with pytest.raises(CalibrationError, match=r"the fused score was calibrated on .*x/b, which nobody read"):
            ask(asked)


def test_others_and_another_order_change_nothing() -> None:
    fusion = Fusion.untrained(Background.fit(CLEAN))
    asked = {"x/a": np.array([2.5]), "x/b": np.array([20.0])}
    other = {"z": np.array([99.0]), **dict(reversed(asked.items()))}
    assert np.array_equal(fusion.score(readings_of(other)), fusion.score(readings_of(asked)))


def test_no_score_depends_on_its_batch_mates() -> None:
    fusion = Fusion(Background.fit(drawn(200, 0), drawn(90, 1)), *opinions(0))
    asked = drawn(37, 2, 0.5)
    alone = np.concatenate([fusion.score(asked.where(np.array([i]))) for i in range(37)])
    np.testing.assert_allclose(alone, fusion.score(asked), rtol=1e-12, atol=1e-12)
