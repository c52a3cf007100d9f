"""The statistics of the diagnoses, against scikit-learn's and scipy's to equality."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import false_discovery_control
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from askance.detectors.statistics import auroc, corrected, neighbor_vote


@pytest.mark.parametrize("dimensions", [1, 2, 4])
@pytest.mark.parametrize("neighbors", [1, 4, 15])
def test_the_vote_is_scikit_learns(dimensions: int, neighbors: int) -> None:
    generator = torch.Generator().manual_seed(dimensions)
    known = torch.randn(400, dimensions, generator=generator)
    classes = torch.randint(0, 5, (400,), generator=generator)
    points = torch.randn(333, dimensions, generator=generator)
    expected = KNeighborsClassifier(neighbors).fit(known.numpy(), classes.numpy()).predict(points.numpy())
    for chunk in (1024, 100):
        assert neighbor_vote(known, classes, points, neighbors, chunk).tolist() == expected.tolist()


def test_fewer_known_points_than_neighbors_and_tied_votes() -> None:
    known, classes = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([2, 1, 1, 2])
    assert neighbor_vote(known, classes, torch.tensor([[0.1], [2.9]]), 15).tolist() == [1, 1]
    assert neighbor_vote(known, classes, torch.tensor([[0.1], [2.9]]), 1).tolist() == [2, 2]


@pytest.mark.parametrize("levels", [3, 40, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_auroc_is_scikit_learns_with_and_without_ties(levels: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(levels)
    negatives = torch.randint(0, levels, (351,), generator=generator).to(dtype) / 7
    positives = torch.randint(levels // 5, levels, (97,), generator=generator).to(dtype) / 7
    truth = [0] * len(negatives) + [1] * len(positives)
    assert auroc(negatives, positives) == roc_auc_score(truth, torch.cat([negatives, positives]).numpy())


def test_auroc_by_hand() -> None:
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([3.0])) == 1.0
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.0])) == 0.625  # 2 wins and a tie of 4 pairs
    assert auroc(torch.ones(3), torch.ones(2)) == 0.5


@pytest.mark.parametrize("count", [1, 2, 4, 9, 30])
def test_corrected_p_values_are_scipys(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    p_values = (torch.randint(1, 1001, (count,), generator=generator).double() / 1001) ** 2
    assert corrected(p_values).tolist() == false_discovery_control(p_values.numpy(), method="by").tolist()
