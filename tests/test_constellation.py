"""The constellation by hand and on digits, the views it asks for, and the Tap that takes them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.ndimage import median_filter as scipy_median
from torch import nn
from toy import Trained, auroc, new_constellation

from askance.detectors import Capture, Constellation, ConstellationOptions, Tap, tap_for
from askance.detectors.views import add_noise, median_filter, reduce_bits
from askance.errors import DataError, LayerError, NotFittedError


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(5, 9), st.integers(5, 9), st.integers(0, 1000))
def test_median_filter_is_scipys(size: int, height: int, width: int, seed: int) -> None:
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    expected = np.stack([[scipy_median(c, size=size, mode="reflect") for c in image] for image in images.numpy()])
    assert torch.equal(median_filter(images, size), torch.from_numpy(expected))


def test_bits_and_noise_by_hand() -> None:
    pixels = torch.tensor([0.0, 0.2, 0.4, 0.6, 1.0]).view(1, 1, 1, 5)
    assert reduce_bits(pixels, 1).flatten().tolist() == [0, 0, 0, 1, 1]
    assert reduce_bits(pixels, 2).flatten().tolist() == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 1])
    noise = torch.tensor([[-0.1] * 5, [0.3] * 5]).view(2, 1, 1, 5)
    noisy = add_noise(pixels, noise)
    assert noisy.shape == (1, 2, 1, 1, 5)
    assert noisy[0, 0].flatten().tolist() == pytest.approx([0, 0.1, 0.3, 0.5, 0.9])
    assert noisy[0, 1].flatten().tolist() == pytest.approx([0.3, 0.5, 0.7, 0.9, 1])


def by_hand() -> tuple[Constellation, Capture]:
    """One input, two noisy copies, one rounded, one filtered; a layer of two numbers."""
    options = ConstellationOptions(displacement_layers=("a",), noise_views=2, bit_depths=(4,), median_sizes=(2,))
    log = [[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.9, 0.1], [0.3, 0.7]]
    logits = torch.tensor(log, dtype=torch.float64).log()
    layer = torch.tensor([[3.0, 4.0], [3.0, 4.5], [3.0, 5.5], [3.0, 4.0], [0.0, 8.0]], dtype=torch.float64)
    views = Capture(logits[1:], {"a": layer[1:]})
    return Constellation(options, (1, 2, 2)), Capture(logits[:1], {"a": layer[:1]}, None, views)


def test_components_by_hand() -> None:
    detector, capture = by_hand()
    components = {name: float(values) for name, values in detector.fit([capture]).components(capture).items()}
    log = math.log
    assert components == pytest.approx(
        {
            "drop:noise": log(0.9) - (log(0.8) + log(0.6)) / 2,
            "drop:bits_4": 0.0,
            "drop:median_2": log(0.9) - log(0.3),
            "shift:noise": (0.2 + 0.6) / 2,
            "shift:bits_4": 0.0,
            "shift:median_2": 1.2,
            "displacement:a:noise": (0.5 + 1.5) / 2 / 5,
            "displacement:a:bits_4": 0.0,
            "displacement:a:median_2": 1.0,
            "grain:a": log(1.0 / 0.2),
        },
        abs=1e-9,
    )
    assert detector.read(capture).two_sided == {
        "displacement:a:noise",
        "displacement:a:bits_4",
        "displacement:a:median_2",
    }
    # the one clean input is as untypical as the input itself: both ranks are 1
    assert detector.score(capture).tolist() == [0.0]


def test_a_score_says_how_far_its_ranks_are_a_matter_of_rounding() -> None:
    """Where half the clean inputs shift by as much as can be, rounding puts one before or behind them all."""
    detector, capture = by_hand()
    detector.fit([capture])
    shift, grain = detector._summary(detector._components(capture)).flatten().tolist()
    spread = torch.linspace(0, 1, 50, dtype=torch.float64)
    detector.yardsticks = torch.stack(
        [
            torch.cat([shift * spread, torch.full((50,), shift - 1e-12, dtype=torch.float64)]),
            torch.cat([grain - 1 - spread] * 2),
        ]
    )
    detector.yardsticks = detector.yardsticks.sort(dim=1).values
    reading = detector.read(capture)
    assert reading.slack is not None
    ranks = [(1 + count) / 101 for count in (0, 51)]  # but for rounding, and with it
    assert float(reading.score) == pytest.approx(-math.log((1 + 1) / 101) - math.log(1 / 101))
    assert float(reading.slack) == pytest.approx(max(math.log(ranks[1] / (2 / 101)), math.log((2 / 101) / ranks[0])))
    detector.yardsticks = torch.stack([spread, spread - 9])
    assert float(detector.read(capture).slack or 0) == 0


def test_what_it_refuses() -> None:
    detector, capture = by_hand()
    with pytest.raises(NotFittedError, match=r"Constellation .*fit"):
        detector.score(capture)
    with pytest.raises(DataError, match="this Capture has no views"):
        detector.fit([Capture(capture.logits, capture.activations)])
    with pytest.raises(DataError, match="the data stream is empty"):
        detector.fit([])
    with pytest.raises(ValidationError, match="to do without the constellation leave its section out"):
        ConstellationOptions(displacement_layers=("a",), noise_views=0)


def test_noise_is_seeded_and_in_the_state() -> None:
    options = ConstellationOptions(displacement_layers=("a",), noise_views=500, noise=0.02, seed=0)
    first = Constellation(options, (1, 8, 8))
    assert float(first.patterns.std()) == pytest.approx(0.02, rel=0.02)
    assert torch.equal(first.patterns, Constellation(options, (1, 8, 8)).patterns)
    other = Constellation(options.model_copy(update={"seed": 1}), (1, 8, 8))
    assert not torch.equal(first.patterns, other.patterns)
    unknown = options.model_copy(update={"seed": None})
    drawn = [Constellation(unknown, (1, 8, 8)).patterns for _ in range(2)]
    assert not torch.equal(*drawn)
    assert not any(torch.equal(one, first.patterns) for one in drawn)
    images = torch.rand(2, 1, 8, 8)
    restored = Constellation(unknown).restore(first.state_dict())
    assert torch.equal(restored.views(images), first.views(images))
    assert first.views(images).shape == (2, 502, 1, 8, 8)


def test_views_join_the_batch_and_come_back_input_by_input(trained: Trained) -> None:
    """What the Tap sees of each copy is what it sees of it alone; one call of the classifier serves all."""
    viewer, images = new_constellation(), trained.part("evaluate")[0][:5]
    calls: list[int] = []
    handle = trained.classifier.register_forward_hook(lambda _m, inputs, _o: calls.append(len(inputs[0])))
    try:
        with torch.no_grad(), tap_for(trained.classifier, [viewer], trained.preprocessing.normalize) as tap:
            capture = tap(images)
            assert calls == [5 * 6]
            assert capture.views is not None
            assert len(capture) == 5
            assert len(capture.views) == 25
            copies = viewer.views(images)
            plain = Tap(trained.classifier, ["relu2", "fc1"], trained.preprocessing.normalize)
            for i in range(5):
                alone = plain(copies[i])
                torch.testing.assert_close(capture.views.logits[5 * i : 5 * i + 5], alone.logits, atol=1e-5, rtol=1e-5)
                chosen = capture.select(torch.tensor([i])).views
                assert chosen is not None
                torch.testing.assert_close(chosen.activations["fc1"], alone.activations["fc1"], atol=1e-5, rtol=1e-5)
            plain.close()
    finally:
        handle.remove()


def test_a_layer_of_another_batch_size_is_refused_with_views_too() -> None:
    class Doubling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(torch.cat([x, x])).flatten(1)[: len(x), :2]
            return logits

    def views(images: torch.Tensor) -> torch.Tensor:
        return images.unsqueeze(1)

    with (
        Tap(Doubling().eval(), ["inner"], None, views) as tap,
        pytest.raises(LayerError, match="one activation for each"),
    ):
        tap(torch.rand(3, 1, 2, 2))


def test_auroc_floor_and_explanation(trained: Trained) -> None:
    detector = trained.detectors["constellation"]
    images, labels = trained.part("evaluate")
    attacked = trained.attack(images, labels, 0.06, 20)
    with torch.no_grad(), tap_for(trained.classifier, [detector], trained.preprocessing.normalize) as tap:
        clean, suspect = tap(images), tap(attacked)
    succeeded = suspect.predicted != labels
    assert auroc(detector.score(clean), detector.score(suspect)[succeeded]) > 0.6
    (explanation,) = detector.explain(clean.select(torch.tensor([0])))
    assert set(explanation) == {"readings", "clean_share_above"}
    assert set(explanation["clean_share_above"]) == {"shift", "grain"}
    assert list(explanation["readings"]) == list(detector.components(clean))
