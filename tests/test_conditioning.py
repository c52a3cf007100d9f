"""Conditioning: readings less what the classifier's answer lets expect of them, by hand and for any readings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askance.judgement.arrays import Doubles, Floats, Ints
from askance.judgement.conditioning import BEND, CLASS_PENALTY, KNOTS, Conditioning
from askance.judgement.margins import margins


def answers(predicted: Ints, margin: Floats, classes: int = 3) -> Floats:
    """Logits, float32 [N, K], of given predicted classes, which lead all others by given margins."""
    logits = np.zeros((len(predicted), classes), dtype=np.float32)
    logits[np.arange(len(predicted)), predicted] = margin
    return logits


def drawn(count: int, seed: int, classes: int = 3) -> tuple[Floats, Doubles]:
    """Logits [N, K], and readings [2, N] that depend on them."""
    g = np.random.default_rng(seed)
    logits = 3 * g.standard_normal((count, classes), dtype=np.float32)
    of_class = np.array([0.0, 1.0, -2.0])[logits.argmax(axis=1)]
    noise = g.standard_normal((2, count))
    return logits, np.stack([noise[0] + of_class - margins(logits), 100 * noise[1] ** 3])


def test_margins_by_hand() -> None:
    found = margins(np.array([[1.0, 4.0, 2.5], [7.0, 7.0, 0.0]]))
    assert found.tolist() == [1.5, 0.0]
    assert found.dtype == np.float64


def test_a_reading_on_its_own_scale_by_hand() -> None:
    """One class, one margin: all that is left to take off is the mean, and to divide by the mean size of the rest."""
    values = np.array([[0.0, 1.0, 2.0, 3.0, 4.0]])
    logits = answers(np.zeros(5, dtype=np.int64), np.full((5,), 2.0))
    made = Conditioning.fit(logits, values)
    assert made.knots.tolist() == [2.0] * KNOTS
    assert made.centre.tolist() == [2.0]
    unit = 4 / 3.29  # the middle nine tenths of so few are all of them
    assert made.spread.tolist() == pytest.approx([unit])
    bent = [BEND * math.asinh((x - 2) / (BEND * unit)) for x in range(5)]
    mean_size = sum(map(abs, bent)) / 5
    divisor = math.exp(sum(math.log(abs(x) + 0.1 * mean_size) for x in bent) / 5)
    assert made(logits, values)[0].tolist() == pytest.approx([x / divisor for x in bent], rel=1e-6)


def test_a_constant_reading_leaves_nothing() -> None:
    logits, _ = drawn(50, 0)
    made = Conditioning.fit(logits, np.full((1, 50), 7.0))
    assert np.abs(made(logits, np.full((1, 50), 7.0))).max() < 1e-6
    other = made(logits[:2], np.array([[6.9, 7.1]]))
    assert np.isfinite(other).all()
    assert other[0, 0] < 0 < other[0, 1]


def test_the_rounding_of_a_reading_that_is_mostly_ties_is_small() -> None:
    """Its quartiles are one number; in units of that a last bit would be as untypical as the greatest of readings."""
    logits, _ = drawn(100, 0)
    values = np.where(np.arange(100) < 80, 0.5, np.arange(100) / 100.0)[None]
    made = Conditioning.fit(logits, values)
    assert made.spread.tolist() == pytest.approx([(0.94 - 0.5) / 3.29], rel=1e-5)
    bent = made._bent(np.array([[0.5, 0.5 + 1e-6, 0.9]]))[:, 0]
    assert bent[0] == 0
    assert 0 < bent[1] < 1e-4 < 1 < bent[2]


def test_what_follows_from_the_margin_is_taken_off() -> None:
    margin = np.linspace(0.1, 8, 2000)
    logits = answers(np.arange(2000) % 3, margin)
    noise = np.random.default_rng(0).standard_normal(2000)
    values = np.stack([2 - 3 * margin + 0.1 * noise, noise])
    made = Conditioning.fit(logits, values)
    left = made._bent(values) - made._at(made.location, made._hats(logits), logits.argmax(axis=1))
    assert left[:, 0].std() < 0.1 * made._bent(values)[:, 0].std()
    assert left[:, 1].std() > 0.99 * made._bent(values)[:, 1].std()
    doubtful, sure = abs(left[:600, 0].mean()), abs(left[-600:, 0].mean())
    assert max(doubtful, sure) < 0.05 * abs(made._bent(values)[:600, 0].mean())


def test_a_spread_that_follows_from_the_margin_is_divided_by() -> None:
    margin = np.linspace(0.1, 8, 3000)
    logits = answers(np.arange(3000) % 3, margin)
    noise = np.random.default_rng(0).standard_normal(3000)
    values = (noise / (1 + margin))[None]
    residual = np.abs(Conditioning.fit(logits, values)(logits, values)[0])
    doubtful, sure = np.median(residual[:500]), np.median(residual[-500:])
    assert 0.8 < doubtful / sure < 1.5
    doubtful, sure = np.median(np.abs(values[0, :500])), np.median(np.abs(values[0, -500:]))
    assert doubtful / sure > 4.5


def test_offsets_of_classes_are_taken_off_where_there_are_many_images() -> None:
    """Of 2,000 images of a class nearly all of its offset, of 2 next to nothing: n / (n + penalty) of it."""
    predicted = np.concatenate([np.arange(4000) % 2, np.full((2,), 2)])
    logits = answers(predicted, np.full((4002,), 3.0))
    noise = np.random.default_rng(0).standard_normal(4002)
    values = (noise + np.array([0.0, 1.0, 5.0])[predicted])[None]
    made = Conditioning.fit(logits, values)
    residual = made(logits, values)[0]
    means = [float(residual[predicted == k].mean()) for k in range(3)]
    assert means[0] == pytest.approx(means[1], abs=0.05)
    assert means[2] > 2
    of_classes = made.location[1 + KNOTS :, 0]
    whole = made._bent(values)[predicted == 2].mean() - made.location[0, 0]
    assert 0 <= of_classes[2] <= 1.2 * 2 / (2 + CLASS_PENALTY) * whole
    assert of_classes[1] - of_classes[0] > 0.4


def test_a_class_without_images_has_no_offset() -> None:
    logits = answers(np.arange(100) % 2, np.linspace(1, 5, 100))
    made = Conditioning.fit(logits, np.random.default_rng(0).standard_normal((2, 100)))
    assert made.location.shape == made.scale.shape == (1 + KNOTS + 3, 2)
    assert np.abs(made.location[-1]).max() < 1e-9
    assert np.abs(made.scale[-1]).max() < 1e-9


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=12))
def test_a_residual_rises_with_its_reading(seed: int, asked: list[float]) -> None:
    logits, values = drawn(80, seed)
    made = Conditioning.fit(logits, values)
    readings = np.tile(sorted(asked), (2, 1))
    for answer in logits[:5]:
        residuals = made(np.tile(answer, (len(asked), 1)), readings)
        assert (np.diff(residuals) >= 0).all()
        assert (np.diff(residuals.astype(np.float32)) >= 0).all()
        apart = np.diff(readings) > 1e-3 * (1 + np.abs(readings).max())
        assert (np.diff(residuals)[apart] > 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30))
def test_no_residual_depends_on_its_batch_mates(seed: int, size: int) -> None:
    logits, values = drawn(60, seed)
    made = Conditioning.fit(logits, values)
    together = made(logits, values)
    starts = range(0, 60, size)
    parts = [made(logits[start : start + size], values[:, start : start + size]) for start in starts]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), together, rtol=1e-12, atol=1e-12)
    assert together.dtype == np.float64


def test_margins_beyond_the_knots_count_as_the_outermost() -> None:
    margin = np.linspace(1, 5, 200)
    logits = answers(np.arange(200) % 3, margin)
    made = Conditioning.fit(logits, np.stack([margin, -margin]))
    assert made.knots.tolist() == pytest.approx([1, 2, 3, 4, 5], abs=1e-6)
    same = np.zeros(4, dtype=np.int64)
    asked = answers(same, np.array([0.0, 1.0, 5.0, 500.0]))
    residuals = made(asked, np.full((2, 4), 2.0))
    assert np.array_equal(residuals[:, 0], residuals[:, 1])
    assert np.array_equal(residuals[:, 2], residuals[:, 3])
    assert made._hats(asked).tolist() == [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    between = made._hats(answers(same[:2], np.array([2.25, 4.5])))
    np.testing.assert_allclose(between, np.array([[0, 0.75, 0.25, 0, 0], [0, 0, 0, 0.5, 0.5]]), atol=1e-6, rtol=0)


def test_some_of_the_readings_are_conditioned_as_among_all() -> None:
    logits, values = drawn(100, 1)
    made = Conditioning.fit(logits, values)
    rows = np.array([1, 0])
    assert np.array_equal(made.only(rows)(logits, values[rows]), made(logits, values)[rows])
    assert np.array_equal(made.only(rows[:1])(logits, values[1:]), made(logits, values)[1:])


@pytest.mark.parametrize("margin", [0.0, 4.0])
def test_equal_margins_give_numbers(margin: float) -> None:
    logits = answers(np.arange(40) % 3, np.full((40,), margin))
    values = np.random.default_rng(0).standard_normal((2, 40))
    made = Conditioning.fit(logits, values)
    other = answers(np.arange(40) % 3, np.linspace(0, 9, 40))
    assert np.isfinite(made(logits, values)).all()
    assert np.isfinite(made(other, 1e30 * values).astype(np.float32)).all()
    np.testing.assert_allclose(made._hats(other).sum(axis=1), np.ones(40))


def test_all_is_in_float64() -> None:
    logits, values = drawn(30, 2)
    made = Conditioning.fit(logits, values)
    assert {array.dtype for array in made.arrays().values()} == {np.dtype(np.float64)}
    assert set(made.arrays()) == {"knots", "centre", "spread", "location", "scale"}
    assert made(logits, values).dtype == np.float64
