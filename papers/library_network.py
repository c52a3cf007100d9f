"""Paper 000, J. H. Lee, "Library network, a possible path to explainable neural networks" (2019)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from askance.calibration.images import Images
from askance.calibration.metrics import separation
from askance.calibration.progress import say
from askance.colours import ATTACKED, CLEAN, COLOURS, of_class
from askance.detectors import LibraryNetwork
from askance.inside.libraries import THETAS, Agreement, Libraries, libraries, most_confusing
from askance.papers.plates import Plate, sheet
from askance.papers.study import BATCH, Study

ROWS = (30, 100, 300, 1000, 3000)  # of libraries, as far as there are FEWEST times as many images
FEWEST = 4
SETTLED = 2000  # images that thresholds are found by, or a few less
NUMBERS = 2**28  # of all layers and images, 1 GiB: by a high threshold libraries of wide layers store every image
NAMED = 20  # classes at most, along an axis
FEWEST_ATTACKED = 20  # images, below which AUROC says little


def plates(study: Study) -> Iterator[Plate]:
    """Figs. 2 (4 of ResNet), 3 and 5; Fig. 1 is a diagram."""
    detector = study.detector(LibraryNetwork)
    if detector is None:
        return
    layers = detector.layers
    (first,) = study.stream(layers, study.fitted[:1])
    fitted = study.fitted[: NUMBERS // sum(first.flat(layer).shape[1] for layer in layers)]
    say(f"libraries of {len(fitted)} images")
    captures = list(study.stream(layers, fitted))  # of a classifier that need not answer anew for each library
    found = libraries(
        layers,
        [rows for rows in ROWS if FEWEST * rows <= len(fitted)],
        detector.options.neighbors,
        captures,
        list(study.stream(layers, study.seen)),
        (captures[: max(1, SETTLED // BATCH)], len(fitted)),
    )
    yield sizes(found, len(fitted))
    yield confusion(found, study.class_names)
    yield from agreement(study, detector)


def sizes(found: Libraries, images: int) -> Plate:
    """Fig. 2: size and agreement against the threshold, of libraries fitted on so many images."""
    figure, parts = sheet(1, 3)
    for place, (layer, points) in enumerate(found.curves.items()):
        drawn = np.array([(point.theta, point.rows, point.top1, point.top3) for point in points]).T
        for axes, values in zip(parts, drawn[1:], strict=True):
            axes.plot(drawn[0], values, "o-", color=of_class(place), markersize=3, label=layer)
    for axes, label in zip(
        parts, ("rows", "share, best answer is the prediction", "share, one of the best three"), strict=True
    ):
        axes.set(xlabel="threshold", ylabel=label)
    parts[0].set_yscale("log")
    parts[0].legend(fontsize=7)
    shrinking = {theta: list(found.sizes(theta).values()) for theta in THETAS}
    holds = all(a > b for rows in shrinking.values() for a, b in pairwise(rows))
    said = ", ".join(
        f"{' > ' if holds else ', '}".join(map(str, rows)) + f" rows at {t}" for t, rows in shrinking.items()
    )
    return Plate(
        "fig-2-size-and-agreement",
        figure,
        "at one threshold earlier layers need larger libraries: their patterns are more diverse",
        f"of {images:,} images: {said}",
        holds,
    )


def confusion(found: Libraries, class_names: Sequence[str]) -> Plate:
    """Fig. 3: what confuses the libraries of each layer, at two thresholds."""
    layers = list(found.curves)
    figure, parts = sheet(len(found.confusion), len(layers), width=3.2, height=3.2)
    worst: dict[str, list[str]] = {layer: [] for layer in layers}
    for row, (theta, by_layer) in enumerate(found.confusion.items()):
        for column, layer in enumerate(layers):
            index = np.array(by_layer[layer], dtype=float)
            axes = parts[row * len(layers) + column]
            beside = np.where(np.eye(len(index), dtype=bool), np.nan, index)
            drawn = axes.imshow(beside, cmap="cividis", vmin=0)
            figure.colorbar(drawn, ax=axes, shrink=0.7)
            axes.set(title=f"{layer}, {theta:g}", xlabel="what is confused with it", ylabel="true class")
            if len(class_names) <= NAMED:
                axes.set_xticks(range(len(class_names)), class_names, rotation=90, fontsize=6)
                axes.set_yticks(range(len(class_names)), class_names, fontsize=6)
            worst[layer].append(class_names[most_confusing(by_layer[layer])])
    told = "; ".join(f"{layer}: {' and '.join(dict.fromkeys(names))}" for layer, names in worst.items())
    steady = all(len(set(worst[layer])) == 1 for layer in layers[:-1])
    return Plate(
        "fig-3-confusion",
        figure,
        "the class that confuses a layer's library most is the same at either threshold (of all layers but the last, "
        "whose indices the paper calls extremely low)",
        f"the greatest mean confusion index beside the diagonal is that of {told}",
        steady if len(layers) > 1 else None,
    )


def agreement(study: Study, detector: LibraryNetwork) -> Iterator[Plate]:
    """Fig. 5: CPL of clean and attacked images, and how well it tells them apart by budget."""
    if not len(study.right):
        return
    found = agreements(study, detector)
    aurocs = {
        budget: separation(-np.array(found.clean), -np.array(attacked))
        for budget, attacked in found.attacked.items()
        if len(attacked) >= FEWEST_ATTACKED
    }
    figure, (histogram, curve) = sheet(1, 2)
    strongest = max(found.attacked)
    least = min(min(values, default=1.0) for values in (found.clean, found.attacked[strongest]))
    bins = np.linspace(min(least, 0.99), 1, 41).tolist()
    for values, colour, label in (
        (found.clean, CLEAN, "clean"),
        (found.attacked[strongest], ATTACKED, f"PGD at {strongest:.3g}"),
    ):
        if len(values):
            weights = np.full(len(values), 1 / len(values))
            histogram.hist(values, bins=bins, weights=weights, alpha=0.6, color=colour, label=label)
    histogram.set(xlabel="CPL, mean cosine of the layers' answers", ylabel="share of images")
    histogram.legend(fontsize=8)
    if aurocs:
        middle, low, high = np.array(list(aurocs.values())).T
        spread, colour = [middle - low, high - middle], COLOURS[LibraryNetwork.kind]
        curve.errorbar(list(aurocs), middle, spread, fmt="o-", color=colour, capsize=3)
    curve.axhline(0.5, color=CLEAN, lw=1)
    curve.set(xlabel="budget of PGD, pixel values (L-infinity)", ylabel="AUROC of 1 - CPL, 95% interval")
    told = ", ".join(
        f"{one.auroc:.2f} ({one.low:.2f} to {one.high:.2f}, {len(found.attacked[budget])} images) at {budget:.3g}"
        for budget, one in aurocs.items()
    )
    yield Plate(
        "fig-5-agreement",
        figure,
        "attacks make the layers' answers disagree",
        f"AUROC of 1 - CPL is {told}" if aurocs else "PGD fooled too few images to tell",
        all(one.low > 0.5 for one in aurocs.values()) if aurocs else None,
    )


@torch.no_grad()
def agreements(study: Study, detector: LibraryNetwork) -> Agreement:
    """CPL of the images seen, and of those that PGD fools the classifier with."""

    def cpl(images: Images, pixels: Tensor | None = None) -> tuple[float, ...]:
        stream = study.stream(detector.layers, images, pixels)
        values = [value for capture in stream for value in detector.read(capture).evidence["cpl"].tolist()]
        return tuple(round(value, 6) for value in values)

    attacked = {budget: cpl(*study.fooled(budget)) for budget in study.budgets}
    return Agreement(clean=cpl(study.seen), attacked=attacked)
