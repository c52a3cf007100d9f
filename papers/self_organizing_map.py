"""Paper 004, J. H. Lee and S. Vijayan, "Generalization ability and vulnerabilities to adversarial perturbations"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import fmean

import numpy as np
import torch
from matplotlib.colors import to_rgb

from askance.calibration.progress import say
from askance.colours import COLOURS, of_class
from askance.detectors import SelfOrganizingMap
from askance.inside.codes import codes, correlation, quantization_errors
from askance.inside.data import Codes, Success
from askance.papers.plates import Plate, along_layers, sheet
from askance.papers.study import Study

DRAWN = 10  # classes
TRIED = 0.1  # of images fooled: the smallest budget that reaches it, or the last, tells classes apart
TILES = 3  # along each side of an unfolded torus


def plates(study: Study) -> Iterator[Plate]:
    """Densities by class and layer, the torus unfolded, errors by epoch, homogeneity, and vulnerability."""
    detector = study.detector(SelfOrganizingMap)
    if detector is None:
        return
    say(f"maps of {len(study.fitted)} images")
    labels, count = study.seen.y, len(study.class_names)
    found = codes(detector, study.stream(detector.layers, study.seen), labels, count)
    yield densities(found, study.class_names)
    yield unfolded(found, study.class_names)
    fitted, seen = (study.stream(detector.layers, images) for images in (study.fitted, study.seen))
    yield learning(quantization_errors(detector, fitted, seen))
    yield homogeneity(found)
    if len(study.right):
        yield from vulnerability(study, found)


def densities(found: Mapping[str, Codes], class_names: Sequence[str]) -> Plate:
    """Where each class's images fall, fitted on beside others."""
    names = class_names[:DRAWN]
    figure, parts = sheet(2 * len(found), len(names), width=1.2, height=1.25)
    overlaps = []
    for row, (layer, one) in enumerate(found.items()):
        for which, hits in enumerate((one.fitted, one.seen)):
            for k, name in enumerate(names):
                axes = parts[(2 * row + which) * len(names) + k]
                axes.imshow(np.sqrt(np.array(hits[k]).reshape(one.side, one.side)), cmap="cividis")
                axes.set_xticks([])
                axes.set_yticks([])
                if not row and not which:
                    axes.set_title(name, fontsize=7)
                if not k:
                    axes.set_ylabel(f"{layer}\n{('fitted', 'others')[which]}", fontsize=6)
        for mine, theirs in zip(one.fitted, one.seen, strict=True):
            if sum(mine) and sum(theirs):
                both = (np.array(mine) / sum(mine), np.array(theirs) / sum(theirs))
                overlaps.append(float(np.minimum(*both).sum()))
    share = fmean(overlaps) if overlaps else 0.0
    return Plate(
        "densities",
        figure,
        "codes of images that were not fitted on fall where those of their class did",
        f"of a class's density {share:.0%} on average is where it was fitted (square roots are drawn)",
        share > 0.5 if overlaps else None,
    )


def unfolded(found: Mapping[str, Codes], class_names: Sequence[str]) -> Plate:
    """The torus laid out three times three, and the classes' centres on it."""
    figure, parts = sheet(1, len(found), width=3.4, height=3.6)
    for axes, (layer, one) in zip(parts, found.items(), strict=True):
        hits = np.array(one.fitted)
        own = np.where(hits.sum(axis=0) > 0, hits.argmax(axis=0), -1).reshape(one.side, one.side)
        colours = np.array([to_rgb(of_class(k) if k >= 0 else "white") for k in own.ravel()])
        tiled = np.tile(colours.reshape(one.side, one.side, 3), (TILES, TILES, 1))
        axes.imshow(tiled)
        for cut in (one.side, 2 * one.side):
            axes.axhline(cut - 0.5, color="black", lw=0.5)
            axes.axvline(cut - 0.5, color="black", lw=0.5)
        for k, centre in enumerate(one.centres[:DRAWN]):
            if centre is not None:
                axes.annotate(
                    class_names[k],
                    (centre[1] + one.side, centre[0] + one.side),
                    fontsize=6,
                    ha="center",
                    bbox={"boxstyle": "round,pad=.15", "fc": "white", "ec": of_class(k)},
                )
        axes.set(title=layer, xlabel="column (units)", ylabel="row (units)")
    return Plate(
        "unfolded",
        figure,
        "on the unfolded torus each class has a region of its own",
        ", ".join(f"in {layer} {one.purity:.0%} lie on units of their class" for layer, one in found.items()),
        all(one.purity > 0.5 for one in found.values()),
    )


def learning(errors: Mapping[str, Sequence[float]]) -> Plate:
    """The quantization error of images that the map does not learn from, by epoch."""
    figure, (axes,) = sheet(width=5.5)
    for place, (layer, values) in enumerate(errors.items()):
        axes.plot(range(1, len(values) + 1), values, color=of_class(place), label=layer)
    axes.set(xlabel="epoch", ylabel="quantization error (sd of a code's numbers)")
    axes.set_yscale("log")
    axes.legend(fontsize=7)
    told = ", ".join(f"{layer} {values[0]:.2f} to {values[-1]:.2f}" for layer, values in errors.items())
    return Plate(
        "quantization-error",
        figure,
        "the quantization error falls while the map learns",
        told,
        all(values[-1] < values[0] for values in errors.values()),
    )


def homogeneity(found: Mapping[str, Codes]) -> Plate:
    """How much a unit tells of the class, and how far a class's codes spread, by layer."""
    figure, (told_by, spread) = sheet(1, 2)
    colour = COLOURS[SelfOrganizingMap.kind]
    information = [one.information for one in found.values()]
    spreads = [one.spread for one in found.values()]
    told_by.plot(information, "o-", color=colour, label="information")
    told_by.plot([one.purity for one in found.values()], "s--", color=colour, label="purity")
    told_by.set(ylabel="share", ylim=(0, 1.02))
    told_by.legend(fontsize=8)
    spread.plot(spreads, "o-", color=colour)
    spread.set(ylabel="spread of a class (units)", ylim=(0, None))
    for axes in (told_by, spread):
        along_layers(axes, found)
    rises = all(a < b for a, b in pairwise(information))
    told = ", ".join(f"{layer} {value:.2f}" for layer, value in zip(found, information, strict=True))
    return Plate(
        "homogeneity",
        figure,
        "codes are homogeneous in shallow layers, where classes share them, and diverse in deep ones (measured by what "
        "a unit tells of the class, of which the paper has nothing; its distance of centres is that of random points)",
        f"information {told}; a class's own codes spread over {spreads[0]:.1f} units in the first layer and "
        f"{spreads[-1]:.1f} in the last",
        rises if len(found) > 1 else None,
    )


def vulnerability(study: Study, found: Mapping[str, Codes]) -> Iterator[Plate]:
    """Whether classes whose own codes are alike are attacked more easily."""
    success = successes(study)
    figure, parts = sheet(1, len(found), width=3.2, height=3.2)
    told, ends = [], []
    for axes, (layer, one) in zip(parts, found.items(), strict=True):
        pairs = list(zip(one.spreads, success.by_class, strict=True))
        for k, (x, y) in enumerate(pairs):
            if x is not None and y is not None:
                axes.scatter(x, y, color=of_class(k), s=24)
                axes.annotate(study.class_names[k], (x, y), fontsize=6)
        axes.set(title=layer, xlabel="spread of the class (units)", ylabel=f"success of {success.attack}")
        if (r := correlation(pairs)) is not None:
            told.append(f"{layer} {r[0]:.2f} ({r[1]:.2f} to {r[2]:.2f})")
            ends.append(r[1:])
    yield Plate(
        "vulnerability",
        figure,
        "homogeneous codes underlie vulnerability: classes whose codes are more alike are attacked more easily, so "
        "that success falls with the spread",
        f"correlation over classes, with its 95% interval: {', '.join(told)}" if told else "too few classes to tell",
        None if not ends or any(low <= 0 <= high for low, high in ends) else all(high < 0 for _, high in ends),
    )


def successes(study: Study) -> Success:
    """How often PGD fools the classifier, by true class, at a budget that tells them apart."""
    for budget in study.budgets:
        fooled, _ = study.fooled(budget)
        if len(fooled) >= TRIED * len(study.right):
            break
    counts = [torch.bincount(images.y, minlength=len(study.class_names)).tolist() for images in (fooled, study.right)]
    by_class = tuple(own / tried if tried else None for own, tried in zip(*counts, strict=True))
    return Success(attack=f"PGD at {budget:.3g}", by_class=by_class)
