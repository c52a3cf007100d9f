"""Growth: how the time of one image's reading rises with what may be large, and by which power.

`python -m benchmarks.growth`, or `make bench-growth`. What is fitted is made up here: its values cost no time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from askance.calibration.progress import say
from askance.detectors import Capture, SemanticSignature, SemanticSignatureOptions
from askance.detectors.library import Library, activation_pattern
from askance.detectors.semantic_signature import centred_unit
from askance.detectors.short_list import ShortList
from askance.judgement import Calibration, Readings
from askance.output import console, write_json
from benchmarks.environment import prepare
from benchmarks.timing import timed

WIDTH, CLASSES, LAYERS, NEIGHBORS = 512, 10, ("one", "two", "three"), 3
LATENT, NOISE = 8, 0.05
CALIBRATED = 2000  # images behind the tables of components
TRIED = 512  # patterns that a short list is made with
SIZES: dict[str, tuple[int, ...]] = {
    "rows": (1_000, 4_000, 16_000, 64_000, 256_000),
    "rows of long libraries": (12_000, 32_000, 96_000, 256_000),
    "width": (1_024, 8_192, 65_536, 262_144, 802_816),  # the last is ResNet-50's first layer at 224 x 224
    "classes": (10, 100, 1_000, 3_000, 10_000),
    "components": (8, 32, 128, 512),
    "batch": (1, 4, 16, 64, 256),
}
WHAT = {
    "rows": f"look-up in a library of so many rows of {WIDTH} numbers",
    "rows of long libraries": f"the same by a short list, of patterns that have {LATENT} dimensions and a little noise",
    "width": "look-up in a library of 64 rows of so many numbers",
    "classes": f"semantic signature of {len(LAYERS)} layers and so many classes",
    "components": "p-values and fused score of so many components",
    "batch": f"look-up of so many images in a library of 4,000 rows of {WIDTH} numbers",
}


@dataclass(frozen=True)
class Curve:
    """How long something takes by how much there is of something.

    Attributes:
        what: takes the time.
        sizes: ascending.
        milliseconds: medians, one for each size.
        exponent: k of time ~ size^k, by least squares over the larger half of the sizes on logarithmic scales.
    """

    what: str
    sizes: tuple[int, ...]
    milliseconds: tuple[float, ...]
    exponent: float


def library(rows: int, width: int) -> Library:
    """Random unit rows, with connections."""
    made = Library(0.9)
    made.rows = activation_pattern(torch.randn(rows, width))
    made.connections = torch.randn(rows, CLASSES, dtype=torch.float64)
    return made


def look_up(rows: int, width: int, batch: int = 1) -> Callable[[], object]:
    """Of random patterns."""
    made, activations = library(rows, width), torch.randn(batch, width)
    return lambda: made.predict(*made.nearest(activations, NEIGHBORS))


def short_look_up(rows: int) -> Callable[[], object]:
    """By a short list, of patterns with the structure that it lives on."""
    basis = torch.randn(LATENT, WIDTH)

    def patterns(count: int) -> Tensor:
        return activation_pattern(torch.randn(count, LATENT) @ basis + NOISE * torch.randn(count, WIDTH))

    made, one = library(1, WIDTH), patterns(1)
    made.rows, made.connections = patterns(rows), torch.randn(rows, CLASSES, dtype=torch.float64)
    made.short_list = ShortList.of(made.rows, patterns(TRIED), NEIGHBORS)
    assert len(made.short_list)
    return lambda: made.predict(*made.nearest(one, NEIGHBORS))


def semantics(classes: int) -> Callable[[], object]:
    """A reading of a random capture."""
    detector = SemanticSignature(SemanticSignatureOptions(semantic_layers=LAYERS), torch.randn(classes, 25))
    for i in range(len(LAYERS)):
        setattr(detector, f"references_{i}", centred_unit(torch.randn(classes, WIDTH)))
    margins = 0.1 * torch.randn(2 * classes, len(LAYERS), dtype=torch.float64)
    detector.counts = torch.full((classes,), 2.0, dtype=torch.float64)
    detector.sums = margins.view(classes, 2, -1).sum(dim=1)
    detector.products = margins.T @ margins
    detector.eval().prepare()
    activations = {layer: torch.randn(1, WIDTH) for layer in LAYERS}
    capture = Capture(torch.randn(1, classes), activations)
    return lambda: detector.read(capture)


def judging(components: int) -> Callable[[], object]:
    """One image's p-values."""
    random = np.random.default_rng(0)

    def readings(count: int) -> Readings:
        values = random.normal(size=(components, count)).astype(np.float32)
        named = {f"detector/{i}": row for i, row in enumerate(values)}
        logits = random.normal(size=(count, CLASSES)).astype(np.float32)
        return Readings({"detector": values[0]}, named, frozenset(), logits)

    calibration, one = Calibration.fit(readings(CALIBRATED), readings(CALIBRATED)), readings(1)
    return lambda: calibration.judge(one)


CALLS: dict[str, Callable[[int], Callable[[], object]]] = {
    "rows": lambda rows: look_up(rows, WIDTH),
    "rows of long libraries": short_look_up,
    "width": lambda width: look_up(64, width),
    "classes": semantics,
    "components": judging,
    "batch": lambda batch: look_up(4_000, WIDTH, batch),
}


def seconds_of(call: Callable[[], object], least: float) -> Iterator[float]:
    """Of one call after the other, for so many seconds at least; the first is not counted."""
    call()
    end = time.perf_counter() + least
    yield timed(call)
    while time.perf_counter() < end:
        yield timed(call)


def measured(name: str, sizes: Sequence[int], least: float) -> Curve:
    """One curve, each size for `least` seconds."""
    found = []
    for size in sizes:
        with torch.no_grad():
            found.append(1000 * statistics.median(seconds_of(CALLS[name](size), least)))
    half = min(len(sizes) // 2, len(sizes) - 2)
    exponent = np.polyfit(np.log(sizes[half:]), np.log(found[half:]), 1)[0]
    return Curve(WHAT[name], tuple(sizes), tuple(found), float(exponent))


def main(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures as JSON.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The two least sizes of each, for a moment.")] = False,
) -> None:
    """Measure how readings grow, with one thread."""
    environment = prepare()
    torch.manual_seed(0)
    console.print(str(environment), soft_wrap=True)
    curves: dict[str, Any] = {}
    for name, sizes in SIZES.items():
        say(name)
        curve = measured(name, sizes[:2] if quick else sizes, 0.01 if quick else 1.0)
        curves[name] = asdict(curve)
        times = ", ".join(f"{size:,}: {ms:.3g} ms" for size, ms in zip(curve.sizes, curve.milliseconds, strict=True))
        console.print(f"{curve.what}: {times}; exponent {curve.exponent:.2f}", soft_wrap=True, highlight=False)
    write_json(json_file, {"environment": asdict(environment), "curves": curves})


if __name__ == "__main__":
    typer.run(main)
