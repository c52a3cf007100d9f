"""Conditioning: readings less what the classifier's answer lets expect of them, by hand and for any readings."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from askance.detectors.conditioning import BEND, CLASS_PENALTY, KNOTS, Conditioning, margins


def answers(predicted: Tensor, margin: Tensor, classes: int = 3) -> Tensor:
    """Logits [N, K] of given predicted classes, which lead all others by given margins."""
    return torch.zeros(len(predicted), classes).scatter(1, predicted.unsqueeze(1), margin.unsqueeze(1).float())


def drawn(count: int, seed: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Logits [N, K], and readings [2, N] that depend on them."""
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=g)
    of_class = torch.tensor([0.0, 1.0, -2.0])[logits.argmax(dim=1)]
    noise = torch.randn(2, count, generator=g)
    return logits, torch.stack([noise[0] + of_class - margins(logits).float(), 100 * noise[1] ** 3])


def test_margins_by_hand() -> None:
    found = margins(torch.tensor([[1.0, 4.0, 2.5], [7.0, 7.0, 0.0]]))
    assert found.tolist() == [1.5, 0.0]
    assert found.dtype == torch.float64


def test_a_reading_on_its_own_scale_by_hand() -> None:
    """One class, one margin: all that is left to take off is the mean, and to divide by the mean size of the rest."""
    values = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]])
    logits = answers(torch.zeros(5, dtype=torch.long), torch.full((5,), 2.0))
    made = Conditioning.fit(logits, values)
    assert made.knots.tolist() == [2.0] * KNOTS
    assert made.centre.tolist() == [2.0]
    assert made.spread.tolist() == pytest.approx([1.4826])  # deviations 2 1 0 1 2
    bent = [BEND * math.asinh((x - 2) / (BEND * 1.4826)) for x in range(5)]
    mean_size = sum(map(abs, bent)) / 5
    divisor = math.exp(sum(math.log(abs(x) + 1e-3 * mean_size) for x in bent) / 5)
    assert made(logits, values)[0].tolist() == pytest.approx([x / divisor for x in bent], rel=1e-6)


def test_a_constant_reading_leaves_nothing() -> None:
    logits, _ = drawn(50, 0)
    made = Conditioning.fit(logits, torch.full((1, 50), 7.0))
    assert made(logits, torch.full((1, 50), 7.0)).abs().max() < 1e-6
    other = made(logits[:2], torch.tensor([[6.9, 7.1]]))
    assert other.isfinite().all()
    assert other.float().isfinite().all()
    assert other[0, 0] < 0 < other[0, 1]


def test_the_rounding_of_a_reading_that_is_mostly_ties_is_small() -> None:
    """Its median deviation is none; in units of that a last bit would be as untypical as the greatest of readings."""
    logits, _ = drawn(100, 0)
    values = torch.where(torch.arange(100) < 80, 0.5, torch.arange(100) / 100.0).unsqueeze(0)
    made = Conditioning.fit(logits, values)
    assert made.spread.tolist() == pytest.approx([0.5 * float((values - 0.5).abs().mean())], rel=1e-5)
    bent = made._bent(torch.tensor([[0.5, 0.5 + 1e-6, 0.9]]).double())[:, 0]
    assert bent[0] == 0
    assert 0 < bent[1] < 1e-4 < 5 < bent[2]


def test_what_follows_from_the_margin_is_taken_off() -> None:
    margin = torch.linspace(0.1, 8, 2000)
    logits = answers(torch.arange(2000) % 3, margin)
    noise = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    values = torch.stack([2 - 3 * margin + 0.1 * noise, noise])
    made = Conditioning.fit(logits, values)
    left = made._bent(values.double()) - made._at(made.location, made._hats(logits), logits.argmax(dim=1))
    assert left[:, 0].std() < 0.1 * made._bent(values.double())[:, 0].std()
    assert left[:, 1].std() > 0.99 * made._bent(values.double())[:, 1].std()
    doubtful, sure = left[:600, 0].mean().abs(), left[-600:, 0].mean().abs()
    assert max(doubtful, sure) < 0.05 * made._bent(values.double())[:600, 0].mean().abs()


def test_a_spread_that_follows_from_the_margin_is_divided_by() -> None:
    margin = torch.linspace(0.1, 8, 3000)
    logits = answers(torch.arange(3000) % 3, margin)
    noise = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    residual = Conditioning.fit(logits, (noise / (1 + margin)).unsqueeze(0))(
        logits, (noise / (1 + margin)).unsqueeze(0)
    )
    doubtful, sure = residual[0, :500].abs().median(), residual[0, -500:].abs().median()
    assert 0.8 < doubtful / sure < 1.25


def test_offsets_of_classes_are_taken_off_where_there_are_many_images() -> None:
    """Of 2,000 images of a class nearly all of its offset, of 2 next to nothing: n / (n + penalty) of it."""
    predicted = torch.cat([torch.arange(4000) % 2, torch.full((2,), 2)])
    logits = answers(predicted, torch.full((4002,), 3.0))
    noise = torch.randn(4002, generator=torch.Generator().manual_seed(0))
    values = (noise + torch.tensor([0.0, 1.0, 5.0])[predicted]).unsqueeze(0)
    made = Conditioning.fit(logits, values)
    residual = made(logits, values)[0]
    means = [float(residual[predicted == k].mean()) for k in range(3)]
    assert means[0] == pytest.approx(means[1], abs=0.05)
    assert means[2] > 3
    of_classes = made.location[1 + KNOTS :, 0]
    whole = made._bent(values.double())[predicted == 2].mean() - made.location[0, 0]
    assert 0 <= of_classes[2] <= 1.2 * 2 / (2 + CLASS_PENALTY) * whole
    assert of_classes[1] - of_classes[0] > 0.4


def test_a_class_without_images_has_no_offset() -> None:
    logits = answers(torch.arange(100) % 2, torch.linspace(1, 5, 100))
    made = Conditioning.fit(logits, torch.randn(2, 100, generator=torch.Generator().manual_seed(0)))
    assert made.location.shape == made.scale.shape == (1 + KNOTS + 3, 2)
    assert made.location[-1].abs().max() < 1e-9
    assert made.scale[-1].abs().max() < 1e-9


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=12))
def test_a_residual_rises_with_its_reading(seed: int, asked: list[float]) -> None:
    logits, values = drawn(80, seed)
    made = Conditioning.fit(logits, values)
    readings = torch.tensor(sorted(asked)).expand(2, -1)
    for answer in logits[:5]:
        residuals = made(answer.expand(len(asked), -1), readings)
        assert (residuals.diff(dim=1) >= 0).all()
        assert (residuals.float().diff(dim=1) >= 0).all()
        apart = readings.diff(dim=1) > 1e-3 * (1 + readings.abs().amax())
        assert (residuals.diff(dim=1)[apart] > 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30))
def test_no_residual_depends_on_its_batch_mates(seed: int, size: int) -> None:
    logits, values = drawn(60, seed)
    made = Conditioning.fit(logits, values)
    together = made(logits, values)
    parts = [made(some, of.T) for some, of in zip(logits.split(size), values.T.split(size), strict=True)]
    torch.testing.assert_close(torch.cat(parts, dim=1), together, rtol=1e-12, atol=1e-12)
    assert together.dtype == torch.float64


def test_margins_beyond_the_knots_count_as_the_outermost() -> None:
    margin = torch.linspace(1, 5, 200)
    logits = answers(torch.arange(200) % 3, margin)
    made = Conditioning.fit(logits, torch.stack([margin, -margin]))
    assert made.knots.tolist() == pytest.approx([1, 2, 3, 4, 5], abs=1e-6)
    same = torch.zeros(4, dtype=torch.long)
    asked = answers(same, torch.tensor([0.0, 1.0, 5.0, 500.0]))
    residuals = made(asked, torch.full((2, 4), 2.0))
    assert torch.equal(residuals[:, 0], residuals[:, 1])
    assert torch.equal(residuals[:, 2], residuals[:, 3])
    assert made._hats(asked).tolist() == [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    between = made._hats(answers(same[:2], torch.tensor([2.25, 4.5])))
    torch.testing.assert_close(
        between, torch.tensor([[0, 0.75, 0.25, 0, 0], [0, 0, 0, 0.5, 0.5]]).double(), atol=1e-6, rtol=0
    )


def test_some_of_the_readings_are_conditioned_as_among_all() -> None:
    logits, values = drawn(100, 1)
    made = Conditioning.fit(logits, values)
    rows = torch.tensor([1, 0])
    assert torch.equal(made.only(rows)(logits, values[rows]), made(logits, values)[rows])
    assert torch.equal(made.only(rows[:1])(logits, values[1:]), made(logits, values)[1:])


@pytest.mark.parametrize("margin", [0.0, 4.0])
def test_equal_margins_give_numbers(margin: float) -> None:
    logits = answers(torch.arange(40) % 3, torch.full((40,), margin))
    values = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    made = Conditioning.fit(logits, values)
    other = answers(torch.arange(40) % 3, torch.linspace(0, 9, 40))
    assert made(logits, values).isfinite().all()
    assert made(other, 1e30 * values).float().isfinite().all()
    torch.testing.assert_close(made._hats(other).sum(dim=1), torch.ones(40).double())


def test_all_is_in_float64() -> None:
    logits, values = drawn(30, 2)
    made = Conditioning.fit(logits, values)
    assert {tensor.dtype for tensor in made.state_dict().values()} == {torch.float64}
    assert set(made.state_dict()) == {"knots", "centre", "spread", "location", "scale"}
    assert made(logits, values).dtype == torch.float64
