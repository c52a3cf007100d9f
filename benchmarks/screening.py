"""Screening: what a verdict costs beside the bare classifier's answer on the same batch."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from benchmarks.fixtures import Fixture
from benchmarks.sizes import Sizes
from benchmarks.timing import Spread, interleave

REST = "explanations and results"


@dataclass(frozen=True)
class ScreeningCost:
    """One network at one batch size.

    Attributes:
        network: its name.
        views: of each image, which the constellation adds; 0 without it.
        batch: images in a call.
        pairs: measurements of each.
        bare_ms, screened_ms: median milliseconds of a call.
        ratio: screened / bare, pair by pair.
        stages_ms: {stage: median milliseconds within a screened call}; `REST` is what no stage covers.
    """

    network: str
    views: int
    batch: int
    pairs: int
    bare_ms: float
    screened_ms: float
    ratio: Spread
    stages_ms: dict[str, float]


def measure(fixture: Fixture, batch: int, sizes: Sizes, *, with_views: bool) -> ScreeningCost:
    """Time the Screen, with or without the constellation, against normalisation and a forward pass of the classifier.

    The bare classifier runs in inference mode and without hooks.
    Both take the same pixels [batch, C, H, W].
    """
    screen = fixture.with_views if with_views else fixture.screen
    preprocessing = fixture.network.preprocessing
    assert len(fixture.images) >= batch
    pixels = fixture.images[:batch].float() / 255
    views = sum(d.views(pixels[:1]).shape[1] for d in screen.detectors.values() if d.view_layers)
    classifier = fixture.bare_classifier()
    calls: list[dict[str, float]] = []

    def bare() -> None:
        with torch.inference_mode():
            classifier(preprocessing.normalize(pixels)).tolist()

    def screened() -> None:
        stages: dict[str, float] = {}
        start = time.perf_counter()
        screen(pixels, observe=stages.__setitem__)
        stages[REST] = time.perf_counter() - start - sum(stages.values())
        calls.append(stages)

    bare()
    screened()
    calls.clear()
    measured = interleave(bare, screened, pairs=sizes.pairs, calls=sizes.calls[batch])
    return ScreeningCost(
        network=fixture.network.name,
        views=views,
        batch=batch,
        pairs=sizes.pairs,
        bare_ms=1000 * statistics.median(measured.base),
        screened_ms=1000 * statistics.median(measured.other),
        ratio=measured.ratio,
        stages_ms={stage: 1000 * statistics.median(call[stage] for call in calls) for stage in calls[0]},
    )
