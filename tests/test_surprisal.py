"""Surprisal: -log of conformal p-values, two-sided ones too, and the tails fitted beyond the sample."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import genpareto

from askance.judgement.arrays import Ranks
from askance.judgement.conformal import table
from askance.judgement.surprisal import Surprisal, Tail, harmonic_mean

Singles = NDArray[np.float32]
scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=40)


def _floats(count: int) -> st.SearchStrategy[list[float]]:
    some = st.sampled_from([-3.0, -0.5, -0.0, 0.0, 1e-30, 0.5, 1.0, 3.0, 1e30])
    return st.lists(some, min_size=count, max_size=count)


def single(values: object) -> Singles:
    return np.array(values, dtype=np.float32)


def surprisal(clean: list[float], asked: list[float]) -> tuple[list[float], list[float]]:
    """On the upper and on the lower side."""
    (found,) = Surprisal([table(single([clean]))], single([0]))(single([asked]))
    return found.above[0].tolist(), found.below[0].tolist()


def test_both_sides_by_hand() -> None:
    upper, lower = surprisal([1.0, 2.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [0.0, 1.0, 2.0, 4.5, 8.0, 9.0])
    # 1 + #at least, and 1 + #at most, over 10
    assert [math.exp(-u) for u in upper] == pytest.approx([1.0, 1.0, 0.9, 0.5, 0.2, 0.1], abs=1e-12)
    assert [math.exp(-u) for u in lower] == pytest.approx([0.1, 0.2, 0.4, 0.6, 1.0, 1.0], abs=1e-12)


@given(scores, scores)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_within_the_sample_it_is_the_conformal_p_value(clean: list[float], asked: list[float]) -> None:
    n = len(clean)
    for s, upper, lower in zip(asked, *surprisal(clean, asked), strict=True):
        assert upper == pytest.approx(-math.log((1 + sum(s_i >= s for s_i in clean)) / (n + 1)), abs=1e-12)
        assert lower == pytest.approx(-math.log((1 + sum(s_i <= s for s_i in clean)) / (n + 1)), abs=1e-12)


def quantiles(shape: float, count: int = 20_000) -> Singles:
    """A generalized Pareto sample without noise, [1, n]."""
    return single([genpareto.ppf((np.arange(count) + 0.5) / count, shape, scale=2.0)])


def beyond(samples: Singles, asked: Singles) -> NDArray[np.float64]:
    """What a tail makes of readings [1, B] that are no surprise."""
    return Tail(samples).continued(np.zeros(asked.shape), asked)


@pytest.mark.parametrize("shape", [0.0, 0.2, 0.5])
def test_tails_of_a_known_distribution(shape: float) -> None:
    """The excess over a quantile of a generalized Pareto distribution is one, too, of the same shape."""
    samples = quantiles(shape)
    assert Tail(samples).shape.tolist() == [pytest.approx(shape, abs=0.05)]
    far = samples[:, -1:] * single([1.2, 3])
    assert beyond(samples, far) == pytest.approx(-genpareto.logsf(far, shape, scale=2.0), rel=0.1)


def test_a_tail_never_ends() -> None:
    """A uniform distribution's does, but no reading may count as impossible."""
    samples = single([np.linspace(0, 1, 2000)])
    assert Tail(samples).shape.tolist() == [0.0]
    (sides,) = Surprisal([samples], single([0]))(single([[1.0, 1.1, 2.0, 100.0]]))
    found = sides.above[0]
    assert found[0] == pytest.approx(math.log(2001 / 2))
    # mean excess over the 95% quantile 0.025: an exponential tail of that scale
    assert found[2] == pytest.approx(math.log(20) + (2.0 - 0.95) / 0.025, rel=0.02)
    assert np.isfinite(found).all()
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize("clean", [np.arange(100), np.ones(2000), np.arange(2000).clip(max=1800)])
def test_without_excesses_there_is_no_tail(clean: NDArray[np.float64]) -> None:
    assert surprisal(clean.tolist(), [1e6])[0] == pytest.approx([math.log(len(clean) + 1)])
    assert beyond(single([clean]), single([[1e6]])).tolist() == [[0]]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_more_extreme_is_never_less_suspicious(seed: int) -> None:
    clean = np.random.default_rng(seed).standard_normal((1, 500), dtype=np.float32)
    (found,) = Surprisal([table(clean)], single([0]))(single([np.linspace(-8, 8, 400)]))
    assert (np.diff(found.above) >= 0).all()
    assert (np.diff(found.below) <= 0).all()
    assert (np.concatenate(found) >= 0).all()


def test_rows_and_tables_are_their_own() -> None:
    tables = [table(single(rows)) for rows in ([[3, 1, 2], [30, 10, 20]], [[0.5], [25]])]
    one, other = Surprisal(tables, single([0, 0]))(single([[2.5, 0.0], [25.0, 40.0]]))
    for found, above, below in (
        (one, [[2 / 4, 4 / 4], [2 / 4, 1 / 4]], [[3 / 4, 1 / 4], [3 / 4, 4 / 4]]),
        (other, [[1 / 2, 2 / 2], [2 / 2, 1 / 2]], [[2 / 2, 1 / 2], [2 / 2, 2 / 2]]),
    ):
        assert np.exp(-found.above).tolist() == [pytest.approx(row) for row in above]
        assert np.exp(-found.below).tolist() == [pytest.approx(row) for row in below]


def test_what_passes_clean_values_by_less_than_the_tolerance_is_among_them() -> None:
    clean = table(single([[0.0, 1.0, 1.0, 1.0, 1.0]]))
    (found,) = Surprisal([clean], single([0.1]))(single([[1.0, 1.05, 1.2, 0.95]]))
    assert np.exp(-found.above[0]).tolist() == pytest.approx([5 / 6, 5 / 6, 1 / 6, 5 / 6])
    assert np.exp(-found.below[0]).tolist() == pytest.approx([1.0, 1.0, 1.0, 1.0])


rows_of_tables = st.integers(1, 3).flatmap(
    lambda rows: st.tuples(
        st.lists(st.integers(1, 6), min_size=1, max_size=3).flatmap(
            lambda counts: st.tuples(*(st.lists(_floats(count), min_size=rows, max_size=rows) for count in counts))
        ),
        st.lists(st.sampled_from([0.0, 0.5, 1e-3]), min_size=rows, max_size=rows),
        st.integers(1, 4).flatmap(lambda count: st.lists(_floats(count), min_size=rows, max_size=rows)),
    )
)


@given(rows_of_tables)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_ranks_are_counted(drawn: tuple[Any, list[float], list[list[float]]]) -> None:
    """Of every table and row, the numbers that a value passes by more than the tolerance, ties and zeros and all."""
    tables, tolerance, values = drawn
    sorted_tables = [table(single(rows)) for rows in tables]
    off, asked = single(tolerance), single(values)
    for own, (less, at_most) in zip(sorted_tables, Ranks(sorted_tables, off)(asked), strict=True):
        for row in range(len(off)):
            for column, value in enumerate(asked[row]):
                assert less[row, column] == (own[row] + off[row] < value).sum()
                assert at_most[row, column] == (own[row] - off[row] <= value).sum()


def test_harmonic_mean_by_hand() -> None:
    p = np.array([[0.5, 1.0], [0.25, 1.0], [0.1, 1.0]])
    assert harmonic_mean(-np.log(p)).tolist() == pytest.approx([math.log((2 + 4 + 10) / 3), 0.0])
