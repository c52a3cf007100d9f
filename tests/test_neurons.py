"""Neuron consistency, by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from askance.detectors import Capture
from askance.inside.neurons import EXCITING, by_words, consistency, excitations, exciting


def test_a_channel_fires_as_it_does_where_it_does_most_and_never_below_nothing() -> None:
    maps = torch.tensor([[[[1.0, -2.0], [3.0, 0.0]], [[-1.0, -1.0], [-5.0, -2.0]]]])
    capture = Capture(torch.zeros(1, 2), {"map": maps, "vector": torch.tensor([[2.0, -3.0]])})
    found = excitations(capture)
    assert found["map"].tolist() == [[3.0, 0.0]]
    assert found["vector"].tolist() == [[2.0, 0.0]]


def test_the_first_of_equals_excites_first_and_a_silent_neuron_nothing() -> None:
    found = exciting(torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    assert found.tolist() == [[1, 0, 2, -1], [-1, -1, -1, -1]]
    assert exciting(torch.rand(3 * EXCITING, 4)).shape == (4, EXCITING)


def test_consistency_by_hand() -> None:
    labels = torch.tensor([0, 0, 1, 2]).repeat_interleave(12)  # images 0 to 23 are of class 0, and so on
    rows = [
        range(12),
        [*range(6), *range(24, 30)],
        [*range(4), *range(24, 28), *range(36, 40)],
        [*range(9), -1, -1, -1],
    ]
    excited = torch.tensor([list(row) for row in rows])
    found = consistency(excited, labels, torch.eye(3))
    assert found is not None
    assert found.neurons == (0, 1, 2)  # the one that fires for nine is left out
    assert found.consistency == pytest.approx([1.0, (1 / 2 - 1 / 3) / (2 / 3), 0.0])  # by p'p of 1, 1/2 and 1/3
    assert found.mean == pytest.approx((1 + 0.25) / 3)
    assert found.low <= found.mean <= found.high
    assert consistency(excited[3:], labels, torch.eye(3)) is None


def test_classes_that_are_alike_count_as_nearly_one() -> None:
    correlations = torch.tensor([[1.0, 0.6, -1.0], [0.6, 1.0, -1.0], [-1.0, -1.0, 1.0]])
    affinity = by_words(correlations)
    assert affinity[0].tolist() == pytest.approx([1.0, 0.8, 0.0])
    labels = torch.tensor([0, 1, 2]).repeat_interleave(5)
    excited = torch.tensor([[*range(10)], [*range(5), *range(10, 15)]])
    found = consistency(excited, labels, affinity)
    assert found is not None
    chance = (3 + 2 * 0.8) / 9
    assert found.consistency == pytest.approx([(0.9 - chance) / (1 - chance), (0.5 - chance) / (1 - chance)])


@given(labels=st.lists(st.integers(0, 3), min_size=10, max_size=40), seed=st.integers(0, 9))
def test_one_class_is_wholly_consistent_and_none_is_more(labels: list[int], seed: int) -> None:
    fired = torch.rand(len(labels), 5, generator=torch.Generator().manual_seed(seed)) + 0.1
    classes = torch.tensor(labels)
    found = consistency(exciting(fired), classes, torch.eye(4))
    assert found is not None
    assert all(-1e-9 <= value <= 1 + 1e-9 for value in found.consistency)
    alone = consistency(exciting(fired), torch.zeros_like(classes), torch.eye(4))
    assert alone is not None
    assert alone.consistency == pytest.approx([1.0] * 5)
