"""Bounds: what detection loses where a detector looks at a part of what it could, to be bounded in time and memory.

`python -m benchmarks.bounds CONFIG...`, or `make bench-bounds ARGS=CONFIG`, with the classifiers and the images of
configs. Two bounds: large libraries are looked up by a short list (`detectors.short_list`), and a self-organizing map
learns the minor axes of wide codes among some of their numbers (`torus_map.MOST_VARYING`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from askance.calibration.attacks import StoppedPGD
from askance.calibration.config import load_config
from askance.calibration.images import Images, ImageStream
from askance.calibration.inputs import CalibrationInputs, load_inputs
from askance.calibration.metrics import separation
from askance.calibration.progress import say
from askance.detectors import (
    Detector,
    LibraryNetwork,
    LibraryNetworkOptions,
    SelfOrganizingMap,
    tap_for,
)
from askance.detectors.library import Library
from askance.detectors.reader import read
from askance.detectors.self_organizing_map import layer_code
from askance.detectors.short_list import ShortList
from askance.errors import AskanceError
from askance.judgement import Readings
from askance.judgement.arrays import Floats
from askance.output import console, write_json
from benchmarks.environment import prepare
from benchmarks.timing import Spread, interleave

SETTLED, FITTED, TRIED, BATCH = 2_000, 20_000, 1_000, 250  # images
MARGIN = 1.0  # in logits: of an attacker who stops early, whom detection is hardest against
PARTS = (1, 2, 4, 8)  # of a code
PAIRS, BATCHES = 9, (1, 32)


@dataclass(frozen=True)
class Detected:
    """AUROC of one reading, with its 95% interval."""

    auroc: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class LookUp:
    """A layer's look-up by its short list beside the one of every row.

    Attributes:
        rows, width: of the library.
        dimensions, cells, looked_at, listed: of the short list: in how many rows are compared; the cells, if any, and
            how many of them are looked at; rows compared in full. All 0 where there is none.
        recall: share of the nearest rows that it finds, of images that it was not made with.
        times: what a look-up takes as a share of the other's, by batch.
    """

    rows: int
    width: int
    dimensions: int
    cells: int
    looked_at: int
    listed: int
    recall: float
    times: Mapping[int, Spread]


@dataclass(frozen=True)
class Trial:
    """Images to tell from one another, under a classifier's hooks.

    Attributes:
        inputs: the classifier and its splits.
        clean: images.
        attacked: pixels, [m, C, H, W].
    """

    inputs: CalibrationInputs
    clean: Images
    attacked: Tensor

    def readings(self, detector: Detector) -> tuple[Readings, Readings]:
        """Of the clean and of the attacked images."""
        with tap_for(self.inputs.classifier, [detector], self.inputs.preprocessing.normalize) as tap:
            clean, attacked = (
                read({detector.kind: detector}, ImageStream(tap, self.clean[: len(pixels)], pixels=pixels))
                for pixels in (self.clean.pixels(), self.attacked)
            )
        return clean, attacked


def trial(inputs: CalibrationInputs) -> Trial:
    """Images of `evaluate`, and those that a little alteration, rounded as files are, has taken for something else."""
    clean = inputs.splits["evaluate"][:TRIED]
    epsilon = 0.2 if clean.x.shape[1] == 1 else 8 / 255
    attack = StoppedPGD(name="stopped", kind="stopped_pgd", epsilon=epsilon, margin=MARGIN)
    predict = inputs.target.build()
    perturb = attack.perturbation(predict, len(inputs.class_names))
    found = []
    for part in clean.batches(BATCH):
        with torch.no_grad():
            right = predict(part.pixels()).argmax(dim=1) == part.y
        altered = (perturb(part.pixels()[right], part.y[right]) * 255).round() / 255
        with torch.no_grad():
            found.append(altered[predict(altered).argmax(dim=1) != part.y[right]])
    return Trial(inputs, clean, torch.cat(found))


def detected(clean: Floats, attacked: Floats) -> Detected:
    """How well a reading tells them apart."""
    auroc, *interval = separation(clean.astype("f8"), attacked.astype("f8"))
    return Detected(auroc, (interval[0], interval[1]))


def libraries(trial: Trial, options: Any, rows: int) -> dict[str, Any]:
    """Libraries of so many rows each, by their short lists and by every row."""
    given = {**options.model_dump(), "thresholds": None, "rows": rows, "library_layers": options.layers}
    detector = LibraryNetwork(LibraryNetworkOptions.model_validate(given))
    inputs = trial.inputs
    with tap_for(inputs.classifier, [detector], inputs.preprocessing.normalize) as tap:
        few, fit, fuse = (
            ImageStream(tap, inputs.splits[name][:count], BATCH)
            for name, count in (("fit", SETTLED), ("fit", FITTED), ("fuse", TRIED))
        )
        detector.settle(few, FITTED)
        detector.fit(fit, fuse).eval()
        capture = tap(trial.clean.pixels())
    by_layer = detector.layer_libraries()
    costs = {layer: look_up(library, capture.flat(layer), options.neighbors + 1) for layer, library in by_layer.items()}
    found = {"short list": trial.readings(detector)}
    for library in by_layer.values():
        library.short_list = ShortList()
    found["every row"] = trial.readings(detector)
    return {
        "layers": {layer: asdict(one) for layer, one in costs.items()},
        "auroc": {
            how: asdict(detected(clean.scores[detector.kind], attacked.scores[detector.kind]))
            for how, (clean, attacked) in found.items()
        },
    }


@torch.no_grad()
def look_up(library: Library, activations: Tensor, count: int) -> LookUp:
    """What a library's short list finds and takes."""
    short, (rows, width) = library.short_list, library.rows.shape
    if not len(short):
        return LookUp(rows, width, 0, 0, 0, 0, 1.0, {})

    threads = torch.get_num_threads()

    def pair(batch: int) -> Spread:
        some = activations[:batch]
        return interleave(
            lambda: library.similarities(some).topk(count, dim=1), lambda: library.nearest(some, count), pairs=PAIRS
        ).ratio

    looked_at, listed = short.effort.tolist()
    recall = short.recall(library.rows, library.patterns(activations), count)
    torch.set_num_threads(1)
    times = {batch: pair(batch) for batch in BATCHES}
    torch.set_num_threads(threads)
    return LookUp(rows, width, len(short), len(short.centres), looked_at, listed, recall, times)


def maps(trial: Trial, options: Any) -> dict[str, Any]:
    """The minor distance of each layer's map by parts of its codes."""
    detector = SelfOrganizingMap(options)
    inputs = trial.inputs
    with tap_for(inputs.classifier, [detector], inputs.preprocessing.normalize) as tap:
        stream = ImageStream(tap, inputs.splits["fit"][:FITTED], BATCH)
        detector.fit(stream).eval()
        captures = [
            (capture.predicted, {layer: layer_code(capture, layer) for layer in detector.layers}) for capture in stream
        ]
    predicted = torch.cat([answers for answers, _ in captures])
    found: dict[str, Any] = {layer: {} for layer in detector.layers}
    for part in PARTS:
        for layer, layer_map in detector.layer_maps().items():
            codes = torch.cat([codes[layer] for _, codes in captures])
            layer_map.find_minor_axes(codes, predicted, len(inputs.class_names), most=codes.shape[1] // part)
        clean, attacked = trial.readings(detector)
        for layer, layer_map in detector.layer_maps().items():
            name = f"{detector.kind}/minor_distance:{layer}"
            one = detected(clean.components[name], attacked.components[name])
            found[layer][layer_map.units.shape[1] // part] = asdict(one)
    return found


def measure(path: Path, rows: int) -> dict[str, Any]:
    """Both bounds with one config's classifier, printed and JSON-ready."""
    settings = load_config(path)
    wanted, tried = settings.detectors.wanted(), trial(load_inputs(settings))
    say(f"{settings.name}: {len(tried.attacked)} of {len(tried.clean)} images are taken for something else")
    of_libraries = libraries(tried, wanted[LibraryNetwork.kind], rows)
    for layer, one in of_libraries["layers"].items():
        console.print(layer, one, soft_wrap=True, highlight=False)
    console.print(of_libraries["auroc"], soft_wrap=True, highlight=False)
    of_maps = maps(tried, wanted[SelfOrganizingMap.kind])
    for layer, parts in of_maps.items():
        figures = ", ".join(f"{count}: {one['auroc']:.3f}" for count, one in parts.items())
        console.print(f"minor distance of {layer}, numbers of its code: {figures}", soft_wrap=True, highlight=False)
    return {"attacked": len(tried.attacked), "library": of_libraries, "map": of_maps}


def main(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG...", help="Their classifiers, images, detectors.")],
    rows: Annotated[int, typer.Option(min=1, help="Of each library, about.")] = 12_000,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures.")] = None,
) -> None:
    """Measure what bounds cost: learned and read on all cores, timed with one thread."""
    environment = prepare()
    console.print(str(environment), soft_wrap=True)
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        found = {path.stem: measure(path, rows) for path in configs}
    except AskanceError as error:
        say(f"bounds: {error}")
        raise typer.Exit(2) from None
    write_json(json_file, {"environment": asdict(environment), "rows": rows, "configs": found})


if __name__ == "__main__":
    typer.run(main)
