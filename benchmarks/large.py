"""Large networks: what fitting and a verdict cost where the classifier is of ImageNet's size.

`python -m benchmarks.large [NAME ...]`, or `make bench-large`: torchvision's classifiers with random weights, at 224 x
224 and 1,000 classes, on smooth noise. The layers are those that `askance init` takes. The semantic signature is left
out: it takes images of every class that are right.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.table import Table
from torch import Tensor, nn

from askance.answers import FUSED
from askance.calibration.exporting import graphs_of
from askance.calibration.images import Images, ImageStream
from askance.calibration.layers import layers_of
from askance.calibration.taps import taps_for
from askance.classifiers import build_classifier
from askance.detectors import DETECTORS, Detector, Inputs, Screen, tap_for
from askance.detectors.reader import TorchReader, read
from askance.errors import ExportError
from askance.judgement import Calibration
from askance.output import console, write_json
from askance.screening.bundle import ALONE
from askance.screening.graph import GraphReader
from askance.screening.preprocessing import Preprocessing
from askance.screening.reading import Reader
from benchmarks.environment import prepare
from benchmarks.timing import Spread, interleave

CLASSES, SIDE = 1000, 224
INPUT = Preprocessing(channels=3, height=SIDE, width=SIDE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
BATCH, PAIRS = 8, 9
FITTED, RANKED = 500, 100  # images
NAMES = ["resnet18", "mobilenet_v3_small", "vit_b_16", "resnet50"]


@dataclass(frozen=True)
class LargeCost:
    """What one network costs.

    Attributes:
        network: torchvision's name.
        images: that the detectors are fitted on.
        layers: that are tapped.
        fit_seconds: by detector.
        peak_gigabytes: of memory that fitting took, the images and torch itself included.
        graph: None where there is one, else why there is none.
        ratios: by engine, reading BATCH images beside the classifier's answers alone.
    """

    network: str
    images: int
    layers: tuple[str, ...]
    fit_seconds: Mapping[str, float]
    peak_gigabytes: float
    graph: str | None
    ratios: Mapping[str, Spread]


def measure(name: str, count: int) -> LargeCost:
    """Fit the detectors of a first config to a torchvision classifier on so many images, and read others with them.

    Fitted on all cores, read by one thread.
    """
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    classifier = build_classifier(f"torchvision:{name}", {"num_classes": CLASSES})
    images = _noise(classifier, count + 2 * RANKED)
    detectors = _detectors(classifier, images)
    seconds = {}
    for kind, detector in detectors.items():
        start = time.perf_counter()
        with tap_for(classifier, [detector], INPUT.normalize) as tap:
            detector.fit(ImageStream(tap, images[:count], BATCH)).eval()
        seconds[kind] = time.perf_counter() - start
    with tap_for(classifier, detectors.values(), INPUT.normalize) as tap:
        calibrate, fuse = (
            read(detectors, ImageStream(tap, images[first : first + RANKED], BATCH))
            for first in (count, count + RANKED)
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    calibration = Calibration.fit(calibrate, fuse)

    def screen(reader: Any) -> Screen[Any]:
        return Screen(reader, INPUT, images.classes, detectors, calibration)

    by_torch = screen(TorchReader(classifier, detectors, INPUT))
    pixels = images[count : count + BATCH].pixels()
    torch.set_num_threads(1)
    ratios, why = {"torch": _ratio(by_torch, pixels)}, None
    try:
        graphs = graphs_of({FUSED: by_torch}, pixels.numpy())
        by_graph = screen(GraphReader(graphs[FUSED], graphs[ALONE], list(detectors), torch.get_num_threads()))
        ratios["onnxruntime"] = _ratio(by_graph, pixels)
    except ExportError as error:
        why = str(error)
    by_torch.close()
    layers = tuple(dict.fromkeys(layer for detector in detectors.values() for layer in detector.layers))
    return LargeCost(name, count, layers, seconds, peak, why, ratios)


@torch.no_grad()
def _noise(classifier: nn.Module, count: int) -> Images:
    """Smooth noise, and what the classifier takes it for."""
    coarse = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    parts = [F.interpolate(part, size=(SIDE, SIDE), mode="bilinear") for part in coarse.split(BATCH)]
    x = torch.cat([(part * 255).to(torch.uint8) for part in parts])
    y = torch.cat([classifier(INPUT.normalize(part.float() / 255)).argmax(dim=1) for part in x.split(BATCH)])
    return Images(x, y, tuple(f"class {i}" for i in range(CLASSES)))


def _detectors(classifier: nn.Module, images: Images) -> dict[str, Detector]:
    taps = taps_for(layers_of(classifier, INPUT, images[:2].pixels()))
    options: dict[str, dict[str, Any]] = {
        "library_network": {"library_layers": taps.parts, "rows": 125, "sampled_neurons": 2048, "seed": 0},
        "introspection": {"hidden_layers": taps.hidden},
    }
    if taps.mapped:
        options["self_organizing_map"] = {"map_layers": taps.mapped, "side": 11}
    inputs = Inputs(INPUT.shape, images.classes, None)
    return {
        kind: DETECTORS[kind].create(DETECTORS[kind].options_class.model_validate(given), inputs)
        for kind, given in options.items()
    }


def _ratio(screen: Screen[Reader], pixels: Tensor) -> Spread:
    """Reading beside the classifier alone: verdicts of noise hang on last bits, for which they are judged once more."""
    return interleave(lambda: screen.reader.classify(pixels), lambda: screen.reader(pixels), pairs=PAIRS).ratio


def main(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Of torchvision's classifiers.")
    ] = None,
    images: Annotated[int, typer.Option(min=100, help="Images that the detectors are fitted on.")] = FITTED,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures.")] = None,
) -> None:
    """Measure what fitting and a verdict cost where the classifier is large."""
    console.print(str(prepare()), soft_wrap=True)
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:  # for the memory of each alone
        costs = [pool.submit(measure, name, images).result() for name in names or NAMES]
    table = Table(title=f"{images} images of {SIDE} x {SIDE}, {CLASSES} classes; read / bare by batches of {BATCH}")
    for column in ("network", "fit s", "peak GB", "torch", "graph"):
        table.add_column(column)
    for cost in costs:
        seconds = ", ".join(f"{kind} {value:.0f}" for kind, value in cost.fit_seconds.items())
        ratios = [str(ratio) for ratio in cost.ratios.values()]
        table.add_row(cost.network, seconds, f"{cost.peak_gigabytes:.1f}", ratios[0], cost.graph or ratios[1])
    console.print(table)
    write_json(json_file, {cost.network: asdict(cost) for cost in costs})


if __name__ == "__main__":
    typer.run(main)
