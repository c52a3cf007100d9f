"""Background: how surprising readings are beside clean images, and beside images that were benignly changed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy import readings_of

from askance.errors import CalibrationError
from askance.judgement import Readings
from askance.judgement.background import Background
from askance.judgement.conditioning import Conditioning
from askance.judgement.margins import NOISE, around, margins, spread
from askance.judgement.surprisal import Surprisal

NAMES = ("x/a", "x/b", "y/c")


def drawn(count: int, seed: int, shift: float = 0.0) -> Readings:
    """Three components, the second untypical either way, of images in three classes."""
    g = np.random.default_rng(seed)
    values = g.standard_normal((3, count)) + shift
    return readings_of(dict(zip(NAMES, values, strict=True)), {"x/b"}, 3 * g.standard_normal((count, 3)))


def test_tables_are_sorted_and_as_many_as_readings() -> None:
    made = Background.fit(drawn(50, 0), drawn(20, 1, 0.5))
    assert (made.names, made.two_sided) == (NAMES, frozenset({"x/b"}))
    assert (made.clean.shape, made.benign.shape, made.doubts.shape) == ((6, 50), (6, 20), (1, 50))
    for table in (made.clean, made.benign, made.doubts):
        assert table.dtype == np.float32
        assert (np.diff(table) >= 0).all()
    clean = drawn(50, 0)
    assert np.array_equal(made.clean[:3], np.sort(clean.stacked(NAMES)))
    left = Conditioning.fit(clean.logits, clean.stacked(NAMES))(clean.logits, clean.stacked(NAMES))
    assert np.array_equal(made.clean[3:], np.sort(left.astype(np.float32)))
    assert np.array_equal(made.doubts[0], np.sort(-margins(clean.logits).astype(np.float32)))
    # what is left of benign images is by what clean ones let expect
    benign = drawn(20, 1, 0.5)
    left = made.conditioning(benign.logits, benign.stacked(NAMES))
    assert np.array_equal(made.benign[3:], np.sort(left.astype(np.float32)))
    assert Background.fit(clean).benign.shape == (6, 0)


def test_values_are_components_residuals_and_doubt() -> None:
    made, asked = Background.fit(drawn(50, 0)), drawn(7, 2)
    values = made.values(asked)
    assert values.shape == (7, 7)
    assert values.dtype == np.float32
    assert np.array_equal(values[:3], asked.stacked(NAMES))
    assert np.array_equal(values[3:6], made.conditioning(asked.logits, asked.stacked(NAMES)).astype(np.float32))
    assert np.array_equal(values[6], -margins(asked.logits).astype(np.float32))


def test_surprisals_by_hand() -> None:
    """One class, one margin: what is left of a reading has the reading's own rank."""
    clean = readings_of({"a": np.array([1.0, 2.0, 3.0]), "b": np.array([30.0, 10.0, 20.0])}, {"a"})
    benign = readings_of({"a": np.array([1.5]), "b": np.array([50.0])}, {"a"})
    asked = readings_of({"a": np.array([2.5]), "b": np.array([40.0])})
    p_above, p_below = [2 / 4, 1 / 4], [3 / 4, 4 / 4]  # of a, of b: 1 + at least, 1 + at most, over 4
    for benignly, speaking in ((None, [2 / 4, 1 / 4, 3 / 4]), (benign, [2 / 4, 2 / 2, 2 / 2])):
        made = Background.fit(clean, benignly)
        found = made.surprisals(made.values(asked))
        assert np.exp(-found.beside_clean).flatten().tolist() == pytest.approx([*p_above, *p_above, *p_below, *p_below])
        # a above, b above, and the same of what is left; then a below, twice
        a, b, a_below = speaking
        assert np.exp(-found.speaking).flatten().tolist() == pytest.approx([a, b, a, b, a_below, a_below])
        assert found.doubt.tolist() == [0.0]  # all margins are alike


def test_of_clean_and_benign_the_less_surprising_speaks() -> None:
    asked, clean, benign = drawn(200, 3, 1.0), drawn(60, 0), drawn(40, 1, 0.5)
    alone, both = Background.fit(clean), Background.fit(clean, benign)
    without, with_benign = alone.surprisals(alone.values(asked)), both.surprisals(both.values(asked))
    assert np.array_equal(with_benign.beside_clean, without.beside_clean)
    assert np.array_equal(with_benign.doubt, without.doubt)
    tolerance = 2 * NOISE * spread(both.clean)  # of clean readings, beside either
    (among,) = Surprisal([both.benign], tolerance)(both.values(asked)[:-1])
    other = np.concatenate(among)
    sides = [i for i, name in enumerate((*NAMES, *NAMES))] + [
        2 * len(NAMES) + i for i, name in enumerate((*NAMES, *NAMES)) if name in both.two_sided
    ]
    assert np.array_equal(with_benign.speaking, np.minimum(without.speaking, other[sides]))
    assert (with_benign.speaking < without.speaking).any()
    assert (with_benign.speaking == without.speaking).any()
    assert without.speaking.shape == (6 + 2, 200)
    assert np.array_equal(without.speaking, without.beside_clean[[0, 1, 2, 3, 4, 5, 7, 10]])


def test_doubt_is_how_few_clean_images_have_so_small_a_margin() -> None:
    margin = np.array([1.0, 2.0, 3.0])
    clean = readings_of({"a": np.zeros(3)}, logits=np.stack([margin, np.zeros(3)], axis=1))
    made = Background.fit(clean)
    asked = np.array([[0.5, 0.0], [2.0, 0.0], [0.0, 2.5], [9.0, 0.0]])
    found = made.surprisals(made.values(readings_of({"a": np.zeros(4)}, logits=asked))).doubt
    assert np.exp(-found).tolist() == pytest.approx([1 / 4, 3 / 4, 3 / 4, 4 / 4])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(-1, 1), st.floats(-1, 1))
@example(163, 0.0, -1.0)  # two classes lead by less than logits may be off: the least margin lies between the ends
def test_the_ends_bracket_the_values_and_all_within_the_margins(seed: int, up: float, wider: float) -> None:
    made, asked = Background.fit(drawn(60, seed)), drawn(9, seed + 1, 1.0)
    _, low, high = made.bounds(asked)
    values = made.values(asked)
    assert (low <= values).all()
    assert (values <= high).all()
    raw = asked.stacked(NAMES)
    off = around(raw, spread(made.clean[:3]))[1] - raw
    moved = dict(zip(NAMES, raw + 0.99 * up * off, strict=True))
    first = np.eye(3)[asked.predicted]
    logits = asked.logits + 1e-6 * wider * np.abs(asked.logits).max(axis=1, keepdims=True) * first
    among = made.values(readings_of(moved, logits=logits))
    room = 1e-6 * (1 + np.abs(values))  # where the margin's own effect has its turning point
    assert (low - room <= among).all()
    assert (among <= high + room).all()


def test_the_ends_of_doubt_are_as_far_as_logits_may_be_off() -> None:
    made = Background.fit(drawn(60, 0))
    asked = readings_of(dict.fromkeys(NAMES, np.zeros(1)), logits=np.array([[-10.0, 4.0, 2.0]]))
    _, low, high = made.bounds(asked)
    assert float(low[-1, 0]) == pytest.approx(-2 - 0.01)  # a thousandth of the largest
    assert float(high[-1, 0]) == pytest.approx(-2 + 0.01)


def test_some_of_the_components() -> None:
    made = Background.fit(drawn(50, 0), drawn(20, 1))
    asked = drawn(9, 2)
    some = made.only(("y/c", "x/b"))
    assert (some.names, some.two_sided) == (("y/c", "x/b"), frozenset({"x/b"}))
    assert np.array_equal(some.values(asked), made.values(asked)[[2, 1, 5, 4, 6]])
    whole = made.surprisals(made.values(asked))
    found = some.surprisals(some.values(asked))
    assert np.array_equal(found.beside_clean, whole.beside_clean[[2, 1, 5, 4, 8, 7, 11, 10]])
    assert np.array_equal(found.speaking, whole.speaking[[2, 1, 5, 4, 6, 7]])
    assert np.array_equal(found.doubt, whole.doubt)
    assert made.only(("x/a",)).two_sided == frozenset()


def test_a_component_that_nobody_read() -> None:
    made = Background.fit(drawn(20, 0))
    for missing, named in ((["x/b"], "x/b"), (["y/c", "x/a"], "x/a, y/c")):
        left = {name: np.zeros(1) for name in NAMES if name not in missing}
        with pytest.raises(CalibrationError, match=f"^the fused score was calibrated on {named}, which nobody read$"):
            made.values(readings_of(left, logits=np.eye(3)[:1]) if left else readings_of({"z": np.zeros(1)}))


def test_broken_clean_readings_are_refused() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(CalibrationError, match="a calibration score is NaN or infinite"):
            Background.fit(readings_of({"a": np.array([0.0, bad])}))
    with pytest.raises(CalibrationError, match="no calibration scores"):
        Background.fit(readings_of({"a": np.empty(0)}))
    with pytest.raises(CalibrationError, match="a calibration score is NaN or infinite"):
        Background.fit(drawn(9, 0), readings_of(dict.fromkeys(NAMES, np.array([math.nan])), logits=np.eye(3)[:1]))
