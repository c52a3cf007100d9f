"""Screening: what a verdict costs beside the bare classifier's answer on the same batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from askance.answers import FUSED
from askance.calibration.exporting import graphs_of
from askance.detectors import Detector, Screen
from askance.screening.bundle import ALONE
from askance.screening.graph import GraphReader, Model
from benchmarks.fixtures import Fixture
from benchmarks.sizes import Sizes
from benchmarks.timing import Spread, interleave

REST = "explanations and results"
TORCH, GRAPH = "torch", "onnxruntime"


@dataclass(frozen=True)
class ScreeningCost:
    """One network at one batch size.

    Attributes:
        network: its name.
        views: of each image, which the constellation adds; 0 without it.
        engine: what computes the screened call.
        bare: what computes the bare one.
        batch: images in a call.
        pairs: measurements of each.
        bare_ms, screened_ms: median milliseconds of a call.
        ratio: screened / bare, pair by pair.
        stages_ms: {stage: median milliseconds within a screened call}; `REST` is what no stage covers.
    """

    network: str
    views: int
    engine: str
    bare: str
    batch: int
    pairs: int
    bare_ms: float
    screened_ms: float
    ratio: Spread
    stages_ms: dict[str, float]


def exported(fixture: Fixture, sizes: Sizes, *, with_views: bool) -> dict[str, Model]:
    """The graphs of the Screen, with or without the constellation, by FUSED, and of the classifier, by ALONE; empty
    where a run of these sizes does without.
    """
    if with_views not in sizes.exported.get(fixture.network.name, ()):
        return {}
    screen = fixture.with_views if with_views else fixture.screen
    return graphs_of({FUSED: screen}, (fixture.images[:32].float() / 255).numpy())


def measure(
    fixture: Fixture, sizes: Sizes, graphs: Mapping[str, Model], *, with_views: bool
) -> Iterator[ScreeningCost]:
    """Time the Screen, with or without the constellation, against normalisation and a forward pass of the classifier.

    Torch beside torch, and of `exported` graphs the Screen's beside torch and beside the classifier's own. The bare
    classifier runs in inference mode and without hooks. All take the same pixels [batch, C, H, W].
    """
    screen = fixture.with_views if with_views else fixture.screen
    normalize, classifier = fixture.network.preprocessing.normalize, fixture.bare_classifier()

    def bare(pixels: Tensor) -> None:
        with torch.inference_mode():
            classifier(normalize(pixels)).tolist()

    for batch in sizes.calls:
        yield _measured(fixture, sizes, batch, screen, screen.reader.detectors, bare, TORCH)
    if not graphs:
        return
    reader = GraphReader(graphs[FUSED], graphs[ALONE], list(screen.detectors), torch.get_num_threads())
    by_graph = Screen(reader, screen.preprocessing, screen.class_names, screen.detectors, screen.calibration)

    def bare_graph(pixels: Tensor) -> None:
        reader.classify(pixels).tolist()

    for batch in sizes.calls:
        yield _measured(fixture, sizes, batch, by_graph, screen.reader.detectors, bare, TORCH)
        yield _measured(fixture, sizes, batch, by_graph, screen.reader.detectors, bare_graph, GRAPH)


def _measured(
    fixture: Fixture,
    sizes: Sizes,
    batch: int,
    screen: Screen,
    detectors: Mapping[str, Detector],
    bare: Callable[[Tensor], None],
    of_bare: str,
) -> ScreeningCost:
    assert len(fixture.images) >= batch
    pixels = fixture.images[:batch].float() / 255
    views = sum(d.views(pixels[:1]).shape[1] for d in detectors.values() if d.view_layers)
    calls: list[dict[str, float]] = []

    def screened() -> None:
        stages: dict[str, float] = {}
        start = time.perf_counter()
        screen(pixels, observe=lambda stage, seconds: stages.update({stage: stages.get(stage, 0.0) + seconds}))
        stages[REST] = time.perf_counter() - start - sum(stages.values())
        calls.append(stages)

    def answered() -> None:
        bare(pixels)

    answered()
    screened()
    calls.clear()
    measured = interleave(answered, screened, pairs=sizes.pairs, calls=sizes.calls[batch])
    return ScreeningCost(
        network=fixture.network.name,
        views=views,
        engine=screen.reader.engine,
        bare=of_bare,
        batch=batch,
        pairs=sizes.pairs,
        bare_ms=1000 * statistics.median(measured.base),
        screened_ms=1000 * statistics.median(measured.other),
        ratio=measured.ratio,
        stages_ms={stage: 1000 * statistics.median(call[stage] for call in calls) for stage in calls[0]},
    )
