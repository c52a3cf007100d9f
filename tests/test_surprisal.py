"""Surprisal: -log of conformal p-values, two-sided ones too, and the tails fitted beyond the sample."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import genpareto
from torch import Tensor

from askance.detectors.conformal import table
from askance.detectors.surprisal import Surprisal, Tail, harmonic_mean

scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=40)


def surprisal(clean: list[float], asked: list[float]) -> tuple[list[float], list[float]]:
    """On the upper and on the lower side."""
    found = Surprisal(table(torch.tensor([clean])), torch.tensor([True]), torch.zeros(1))
    upper, lower = found(torch.tensor([asked])).tolist()
    return upper, lower


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


def quantiles(shape: float, count: int = 20_000) -> Tensor:
    """A generalized Pareto sample without noise, [1, n]."""
    return torch.tensor(genpareto.ppf((torch.arange(count) + 0.5) / count, shape, scale=2.0)).float().unsqueeze(0)


@pytest.mark.parametrize("shape", [0.0, 0.2, 0.5])
def test_tails_of_a_known_distribution(shape: float) -> None:
    """The excess over a quantile of a generalized Pareto distribution is one, too, of the same shape."""
    tail = Tail(quantiles(shape))
    assert float(tail.shape) == pytest.approx(shape, abs=0.05)
    far = torch.tensor([[1.2 * float(tail.samples[0, -1]), 3 * float(tail.samples[0, -1])]])
    expected = -genpareto.logsf(far.numpy(), shape, scale=2.0)
    assert tail(far).numpy() == pytest.approx(expected, rel=0.1)


def test_a_tail_never_ends() -> None:
    """A uniform distribution's does, but no reading may count as impossible."""
    tail = Tail(torch.linspace(0, 1, 2000).unsqueeze(0))
    assert float(tail.shape) == 0.0
    found = tail(torch.tensor([[1.0, 1.1, 2.0, 100.0]])).squeeze(0)
    assert found[0] == pytest.approx(math.log(2001 / 2))
    # mean excess over the 95% quantile 0.025: an exponential tail of that scale
    assert found[2].item() == pytest.approx(math.log(20) + (2.0 - 0.95) / 0.025, rel=0.02)
    assert bool(torch.isfinite(found).all())
    assert bool((found.diff() > 0).all())


@pytest.mark.parametrize("clean", [torch.arange(100.0), torch.ones(2000), torch.arange(2000).clamp(max=1800)])
def test_without_excesses_there_is_no_tail(clean: Tensor) -> None:
    assert Tail(clean.float().unsqueeze(0))(torch.tensor([[1e6]])).item() == pytest.approx(math.log(len(clean) + 1))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_more_extreme_is_never_less_suspicious(seed: int) -> None:
    clean = torch.randn(1, 500, generator=torch.Generator().manual_seed(seed))
    found = Surprisal(table(clean), torch.tensor([True]), torch.zeros(1))
    upper, lower = found(torch.linspace(-8, 8, 400).unsqueeze(0))
    assert bool((upper.diff() >= 0).all())
    assert bool((lower.diff() <= 0).all())
    assert bool((torch.cat([upper, lower]) >= 0).all())


def test_rows_are_their_own() -> None:
    clean = table(torch.tensor([[3.0, 1.0, 2.0], [30.0, 10.0, 20.0], [3.0, 1.0, 2.0]]))
    surprisal = Surprisal(clean, torch.tensor([False, True, False]), torch.zeros(3))
    found = surprisal(torch.tensor([[2.5, 0.0], [25.0, 40.0], [0.0, 9.0]]))
    expected = [[0.5, 1.0], [0.5, 0.25], [1.0, 0.25], [0.75, 1.0]]  # three upper sides, then the second's lower
    assert (-found).exp().tolist() == [pytest.approx(row) for row in expected]


def test_what_passes_clean_values_by_less_than_the_tolerance_is_among_them() -> None:
    clean = table(torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0]]))
    found = Surprisal(clean, torch.tensor([True]), torch.tensor([0.1]))(torch.tensor([[1.0, 1.05, 1.2, 0.95]]))
    upper, lower = (-found).exp()
    assert upper.tolist() == pytest.approx([5 / 6, 5 / 6, 1 / 6, 5 / 6])
    assert lower.tolist() == pytest.approx([1.0, 1.0, 1.0, 1.0])


def test_harmonic_mean_by_hand() -> None:
    p = torch.tensor([[0.5, 1.0], [0.25, 1.0], [0.1, 1.0]], dtype=torch.float64)
    assert harmonic_mean(-p.log()).tolist() == pytest.approx([math.log((2 + 4 + 10) / 3), 0.0])
