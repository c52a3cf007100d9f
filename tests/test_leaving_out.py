"""Correlations without two entries, all pairs at once, against one pair at a time."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from askance.detectors.leaving_out import Rows, leads, matches


def pearson(a: Tensor, b: Tensor) -> float:
    """0 where either is constant."""
    a, b = (one.double() - one.double().mean() for one in (a, b))
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms > 1e-6 else 0.0


def without(row: Tensor, p: int, q: int) -> Tensor:
    return row[[k for k in range(len(row)) if k not in (p, q)]]


def some(seed: int, *shape: int, level: float = 0.0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1 + level


@given(classes=st.integers(5, 12), seed=st.integers(0, 1000), level=st.sampled_from([0.0, 0.9, 1e3]))
@settings(max_examples=60, deadline=None)
def test_leads_equal_one_pair_at_a_time(classes: int, seed: int, level: float) -> None:
    words, similarities = some(seed, classes, classes), some(seed + 1, 3, 2, classes, level=level)
    predicted = torch.randint(classes, (3,), generator=torch.Generator().manual_seed(seed + 2))
    found = leads(similarities, predicted, Rows.of(words))
    assert found.shape == (3, 2, classes)
    for b, p in enumerate(predicted.tolist()):
        for layer in range(2):
            for q in range(classes):
                i = without(similarities[b, layer], p, q)
                own, rival = (pearson(i, without(words[row], p, q)) for row in (p, q))
                assert abs(float(found[b, layer, q]) - (own - rival if q != p else 0.0)) < 1e-5


@given(classes=st.integers(4, 10), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_two_versus_two_equals_one_pair_at_a_time(classes: int, seed: int) -> None:
    image, word = some(seed, classes, classes), some(seed + 1, classes, classes)
    found = matches(Rows.of(image), Rows.of(word))
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    again = Rows.of(word[order][:, order])
    assert all(torch.allclose(a, b) for a, b in zip(Rows.of(word).shuffled(order), again, strict=True))
    for p in range(classes):
        for q in range(p):
            i_p, i_q, w_p, w_q = (without(one[row], p, q) for one in (image, word) for row in (p, q))
            difference = pearson(i_p, w_p) + pearson(i_q, w_q) - pearson(i_p, w_q) - pearson(i_q, w_p)
            if abs(difference) > 1e-6:
                assert bool(found[p, q]) == bool(found[q, p]) == (difference > 0)


def test_what_does_not_vary_correlates_with_nothing() -> None:
    words = some(0, 7, 7)
    predicted = torch.tensor([2])
    for level in (0.0, 0.3, -1.0):
        flat = torch.full((1, 1, 7), level)
        assert leads(flat, predicted, Rows.of(words)).abs().max() == 0
        flat[0, 0, 2] += 0.5  # varies at what is always left out
        assert leads(flat, predicted, Rows.of(words)).abs().max() < 1e-6
        flat[0, 0, 5] += 0.5  # and at what is left out beside class 5
        found = leads(flat, predicted, Rows.of(words))[0, 0]
        assert abs(float(found[5])) < 1e-6
        assert float(found.abs().max()) > 0.1
    assert leads(some(1, 1, 1, 7), predicted, Rows.of(torch.ones(7, 7))).abs().max() == 0


def test_tables_are_quadratic_in_the_classes() -> None:
    rows = Rows.of(some(0, 2000, 2000))
    assert sum(one.numel() for one in rows) == 3 * 2000**2
    assert np.isfinite(rows.inverses.numpy()).all()


def test_many_tables_at_once_are_each_of_them_alone() -> None:
    images, word = some(3, 4, 7, 7), some(4, 7, 7)
    orders = torch.stack([torch.randperm(7, generator=torch.Generator().manual_seed(seed)) for seed in range(6)])
    found = matches(Rows.of(images.unsqueeze(1)), Rows.of(word).shuffled(orders))
    assert found.shape == (4, 6, 7, 7)
    for i, image in enumerate(images):
        for j, order in enumerate(orders):
            assert torch.equal(found[i, j], matches(Rows.of(image), Rows.of(word[order][:, order])))
