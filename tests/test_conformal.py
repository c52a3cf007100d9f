"""Conformal p-values by hand, with ties, and the guarantee they give."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askance.errors import CalibrationError
from askance.judgement.arrays import Doubles
from askance.judgement.conformal import (
    POOLED,
    UNEVEN,
    check_level,
    least_favourable,
    p_value,
    samples_needed,
    table,
    threshold,
)

scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=40)


def test_p_value_by_hand_with_ties() -> None:
    clean = table(np.array([3.0, 1.0, 2.0, 2.0]))
    assert clean.tolist() == [1.0, 2.0, 2.0, 3.0]
    asked = np.array([0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5])
    expected = [5 / 5, 5 / 5, 4 / 5, 4 / 5, 2 / 5, 2 / 5, 1 / 5]
    assert p_value(asked, clean).tolist() == pytest.approx(expected, abs=1e-15)
    assert p_value(asked, clean).dtype == np.float64


def test_each_reading_has_its_own_row() -> None:
    clean = table(np.array([[3.0, 1.0, 2.0], [30.0, 10.0, 20.0]]))
    assert clean.tolist() == [[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]


def test_scores_are_compared_in_the_precision_of_the_table() -> None:
    clean = np.array([0.1, 0.2, 0.3], dtype=np.float32)
    assert p_value(np.array([0.2]), clean).tolist() == [0.75]


@given(scores, scores)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_p_value_is_its_definition(clean: list[float], asked: list[float]) -> None:
    n = len(clean)
    p = p_value(np.array(asked), table(np.array(clean)))
    assert p.tolist() == [(1 + sum(s_i >= s for s_i in clean)) / (n + 1) for s in asked]


@given(st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=40))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_p_values_are_super_uniform(exchangeable: list[float]) -> None:
    """Leave each of n + 1 scores out in turn: at most a share alpha of them has p <= alpha, ties or not."""
    ps = []
    for i, s in enumerate(exchangeable):
        rest = table(np.array(exchangeable[:i] + exchangeable[i + 1 :]))
        ps.append(float(p_value(np.array([s]), rest)[0]))
    count = len(exchangeable)
    for k in range(1, count + 1):
        assert sum(p <= k / count + 1e-12 for p in ps) <= k


@given(st.lists(st.integers(0, 30).map(float), min_size=1, max_size=250), st.integers(1, 99), st.integers(-1, 31))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_threshold_flags_exactly_the_p_values_at_most_alpha(clean: list[float], percent: int, s: int) -> None:
    alpha, sorted_scores = percent / 100, table(np.array(clean))
    needed = samples_needed(alpha)
    if len(clean) < needed:
        with pytest.raises(CalibrationError, match=f"needs at least {needed} calibration samples, got {len(clean)}"):
            threshold(sorted_scores, alpha)
        return
    limit = threshold(sorted_scores, alpha)
    for asked in (float(s), limit, limit + 0.5, limit - 0.5):
        assert (asked > limit) == (float(p_value(np.array([asked]), sorted_scores)[0]) <= alpha)


@pytest.mark.parametrize("percent", range(1, 100))
def test_samples_needed_is_the_fewest(percent: int) -> None:
    alpha = Fraction(percent, 100)
    n = samples_needed(percent / 100)
    assert Fraction(1, n + 1) <= alpha
    assert n == 1 or Fraction(1, n) > alpha
    assert n == max(1, math.ceil(1 / alpha) - 1)


@pytest.mark.parametrize(("alpha", "n"), [(0.05, 19), (0.01, 99), (0.001, 999), (0.5, 1), (0.3, 3), (1e-4, 9999)])
def test_samples_needed_by_hand(alpha: float, n: int) -> None:
    assert samples_needed(alpha) == n
    check_level(alpha, n, "suspect")
    if n > 1:
        text = f"false-positive target suspect = {alpha:g} needs at least {n} calibration samples, got {n - 1}"
        with pytest.raises(CalibrationError, match=text):
            check_level(alpha, n - 1, "suspect")


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_levels_outside_the_unit_interval_are_refused(alpha: float) -> None:
    with pytest.raises(CalibrationError, match=rf"adversarial = {alpha} must lie between 0 and 1"):
        check_level(alpha, 1000, "adversarial")


@pytest.mark.parametrize(
    ("benign", "expected"),
    [
        ([1.5, 5.0, 9.0], [1.5, 5.0, 9.0]),
        ([0.0, 0.5, 0.7], [1.0, 2.0, 3.0]),
        ([0.0, 2.5, 2.5], [1.0, 2.5, 3.0]),
        ([2.5], [2.5, 2.5, 3.0]),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 3.0, 5.0]),  # the greatest 6, 4 and 2 of 7, over 8
    ],
)
def test_the_least_favourable_table_by_hand(benign: list[float], expected: list[float]) -> None:
    assert least_favourable(np.array([1.0, 2.0, 3.0]), [np.array(benign)]).tolist() == expected
    one_by_one = [np.array([score]) for score in benign]  # shrunk so much that all of them decide
    assert least_favourable(np.array([1.0, 2.0, 3.0]), one_by_one)[0] >= expected[0]


@given(scores, scores, scores)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_by_the_least_favourable_table_the_greater_p_value_holds(
    clean: list[float], benign: list[float], asked: list[float]
) -> None:
    of_clean, of_benign, values = (table(np.array(some)) for some in (clean, benign, asked))
    both = least_favourable(of_clean, [of_benign])
    assert both.shape == of_clean.shape
    assert np.array_equal(both, table(both))
    p, p_clean, p_benign = (p_value(values, one) for one in (both, of_clean, of_benign))
    greater = np.maximum(p_clean, p_benign)
    assert (p >= p_clean).all()
    assert (p >= p_benign - 1e-12)[values <= of_benign[-1]].all()
    assert (p >= greater - 1 / (len(benign) + 1) - 1e-12).all()
    assert (p <= greater + 1 / (len(clean) + 1) + 1e-12).all()
    assert np.array_equal(least_favourable(of_clean, [of_clean]), of_clean)


def test_one_change_does_not_hide_behind_the_others() -> None:
    """Nine changes that look like clean images, and one of which a quarter does not."""
    clean = np.linspace(0, 1, 1000)
    calm = [np.linspace(0, 1, 100) for _ in range(9)]
    loud = np.concatenate([np.linspace(0, 1, 75), np.linspace(2, 3, 25)])
    made = least_favourable(clean, [*calm, loud])

    def flagged(scores: Doubles, alpha: float) -> float:
        return float((p_value(scores, made) <= alpha).mean())

    assert flagged(loud, 0.05) == 0.1  # (10 + 50 * 11 / 1001) / 150 is at most 1.5 times .05, and with 11 it is not
    assert flagged(loud, 0.01) == 0.02
    assert flagged(calm[0], 0.05) == 0
    pooled = least_favourable(clean, [np.sort(np.concatenate([*calm, loud]))])
    assert float((p_value(loud, pooled) <= 0.05).mean()) == 0.27


@given(st.lists(scores, min_size=1, max_size=4), scores, scores)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_change_is_flagged_much_oftener_than_its_shrunk_share(
    changes: list[list[float]], clean: list[float], asked: list[float]
) -> None:
    of_each = [table(np.array(one)) for one in changes]
    pooled, values = table(np.concatenate(of_each)), np.array(asked)
    p = p_value(values, least_favourable(table(np.array(clean)), of_each))
    within = values <= pooled[-1]
    for own in of_each:
        at_least = (own >= values[:, None]).sum(axis=1)
        share = (at_least + POOLED * p_value(values, pooled)) / (len(own) + POOLED)
        assert (p >= share / UNEVEN - 1e-9)[within].all()


def test_broken_tables_are_refused() -> None:
    with pytest.raises(CalibrationError, match="no calibration scores: expected at least one clean input"):
        table(np.empty(0))
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(CalibrationError, match="a calibration score is NaN or infinite"):
            table(np.array([0.0, bad]))
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        table(np.array([[0.0, 1.0], [0.0, math.nan]]))


def test_asking_does_not_change_the_table() -> None:
    raw = np.array([2.0, 1.0])
    clean = table(raw)
    p_value(np.array([5.0, -5.0, 1.5]), clean)
    assert raw.tolist() == [2.0, 1.0]
    assert clean.tolist() == [1.0, 2.0]
