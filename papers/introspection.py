"""Paper 001, A. Pardo et al., "Coloring the black box: visualizing neural network behavior with a self-introspective
model" (2019).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import cast

import numpy as np
import torch
from matplotlib.collections import Collection
from torch import Tensor

from askance.calibration.images import Images
from askance.calibration.metrics import Separation, separation
from askance.calibration.progress import say
from askance.colours import GREEN, RED, of_class
from askance.detectors import Introspection
from askance.drawing.insides import Z1, Z2, within
from askance.drawing.still import dots, ground, placed
from askance.inside.activations import MAP_DIMENSIONS, introspected, sorted_network
from askance.inside.data import EDGE, ActivationMap, Cloud, ErrorEstimates, SortedLayer, Trajectory
from askance.inside.training import record
from askance.inside.wandering import cloud, trajectory
from askance.papers.plates import Plate, picture, sheet
from askance.papers.study import Study

SIGMAS = (0.0, 0.1, 0.2, 0.3)  # of Fig. 5, in pixel values
FOLLOWED, RECORDED = 3, 400  # images of Fig. 6, and of Fig. 2a
DRAWN_LINES = 150  # of them
MOST_TARGETS = 9  # of each image of Fig. 6
FEWEST_MISTAKES = 5


def plates(study: Study) -> Iterator[Plate]:
    """Figs. 2, 3, 4, 5, 6 and 7; Fig. 1 is a diagram."""
    detector = study.detector(Introspection)
    if detector is None:
        return
    say(f"activations of {len(study.seen)} images")
    drawn, errors = introspected(detector, study.stream(detector.layers, study.seen))
    right = study.predicted == study.seen.y
    flat = detector.options.latent_dimensions == MAP_DIMENSIONS
    if flat and (trained := _over_training(study, detector)) is not None:
        yield trained
    if flat and drawn is not None:
        fitted, _ = introspected(detector, study.stream(detector.layers, study.fitted[: len(study.seen)]))
        assert fitted is not None
        yield activation_maps(study, fitted, drawn, right, errors)
    layers = sorted_network(detector, study.stream(detector.layers, study.fitted))
    if layers:
        yield sorted_units(layers, study.class_names)
    if flat and drawn is not None and len(study.right):
        yield samples(study, detector, drawn, right)
        yield constellations(study, detector, drawn)
        yield ways(study, detector, drawn)
    yield violins(errors, study.seen.y, right, study.class_names)


def activation_maps(
    study: Study, fitted: ActivationMap, seen: ActivationMap, right: Tensor, errors: ErrorEstimates
) -> Plate:
    """Fig. 2b to d: where images lie, and the error that is expected there."""
    figure, (learned, others) = sheet(1, 2, width=5.2, height=4.6)
    ground(learned, fitted)
    dots(learned, fitted.points, study.fitted.y[: len(fitted.points)].tolist(), s=4)
    learned.set_title("fitted on")
    ground(others, seen)
    dots(others, seen.points, study.seen.y.tolist(), s=4)
    wrong = placed(point for point, fine in zip(seen.points, right.tolist(), strict=True) if not fine)
    if len(wrong):
        others.scatter(wrong[:, 0], wrong[:, 1], s=40, facecolors="none", edgecolors=RED, label="mistakes")
        others.legend(fontsize=8)
    others.set_title("others, mistakes ringed")
    figure.colorbar(others.images[0], ax=others, label="expected error (log10)", shrink=0.8)
    ranks = _ranking(errors.latent, right)
    return Plate(
        "fig-2-activation-map",
        figure,
        "mistakes lie where the map says that an error is to be expected",
        "there are too few mistakes to tell"
        if ranks is None
        else f"the error expected at its place ranks mistakes above right answers with an AUROC of {ranks.in_words}",
        None if ranks is None else _above_chance(ranks),
    )


def _over_training(study: Study, detector: Introspection) -> Plate | None:
    """Fig. 2a: where the same images lie at each epoch."""
    some = study.fitted[:RECORDED]
    kept = list(study.checkpoints())
    if not kept:
        return None
    say(f"activations of {len(kept)} epochs")
    found = record(detector.options, [study.stream(detector.layers, some, classifier=one.classifier) for one in kept])
    figure, (axes,) = sheet(width=5.5, height=5.0)
    for image in range(min(len(found.labels), DRAWN_LINES)):
        line = placed(found.points[:, image].tolist())
        axes.plot(line[:, 0], line[:, 1], color=of_class(int(found.labels[image])), lw=0.5, alpha=0.5)
        axes.scatter(line[-1, 0], line[-1, 1], color=of_class(int(found.labels[image])), s=8)
    axes.set(xlabel=Z1, ylabel=Z2, xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE))
    shares = found.between_classes()
    return Plate(
        "fig-2a-over-training",
        figure,
        "training drives the activations of different classes apart",
        f"of the points' variance {shares[0]:.0%} lies between classes at epoch {kept[0].epoch} and {shares[-1]:.0%} "
        f"at epoch {kept[-1].epoch}",
        shares[-1] > shares[0],
    )


def sorted_units(layers: Mapping[str, SortedLayer], class_names: Sequence[str]) -> Plate:
    """Fig. 3: what each class does to the units, sorted by the class that moves them most."""
    figure, parts = sheet(len(layers), 1, width=8.0, height=2.0)
    for axes, (layer, one) in zip(parts, layers.items(), strict=True):
        expected = np.array(one.expected)
        most = float(np.abs(expected).max()) or 1.0
        drawn = axes.imshow(expected, aspect="auto", cmap="RdBu_r", vmin=-most, vmax=most)
        figure.colorbar(drawn, ax=axes, label="E[h | class] (sd)")
        axes.set_yticks(range(len(class_names)), class_names, fontsize=6)
        axes.set(title=layer, xlabel=f"unit, sorted ({len(one.preferred)} of {one.units})")
    agreement = ", ".join(f"{layer} {one.agreement:.0%}" for layer, one in layers.items())
    return Plate(
        "fig-3-sorted-network",
        figure,
        "each unit has a class that it prefers, which the decoder knows",
        f"of the units that vary, those whose decoded class is the one that moves them most are {agreement}",
        all(one.agreement >= 0.75 for one in layers.values()),
    )


def samples(study: Study, detector: Introspection, drawn: ActivationMap, right: Tensor) -> Plate:
    """Fig. 4: some images, right and wrong, and where they lie."""
    chosen = [*right.nonzero().flatten()[:2].tolist(), *(~right).nonzero().flatten()[:2].tolist()]
    images: Images = study.seen[torch.tensor(chosen)]
    (capture,) = study.stream(detector.layers, images)
    figure, parts = sheet(2, len(chosen), width=3.0, height=3.0)
    for column, row in enumerate(chosen):
        top, below = parts[column], parts[len(chosen) + column]
        image = images.pixels()[column]
        picture(top, image)
        true, given = int(images.y[column]), int(capture.predicted[column])
        top.set_title(f"{study.class_names[true]}, taken for {study.class_names[given]}", fontsize=8)
        ground(below, drawn)
        below.scatter(*within(drawn.points[row]), s=90, marker="X", color=RED, edgecolors="white")
    return Plate(
        "fig-4-samples",
        figure,
        "mistaken images lie between the patches of the classes",
        "see for yourself: two images that the classifier gets right, and two of its mistakes where there are any",
        None,
    )


def constellations(study: Study, detector: Introspection, drawn: ActivationMap) -> Plate:
    """Fig. 5: 200 copies of one image by noise."""
    tap, image = study.tap(detector.layers), study.right[:1].pixels()[0]
    clouds = [cloud(tap, detector, image, sigma) for sigma in SIGMAS]
    figure, parts = sheet(1, len(clouds), width=3.2, height=3.4)
    for axes, one in zip(parts, clouds, strict=True):
        ground(axes, drawn)
        dots(axes, one.points, one.predicted, s=8)
        axes.set_title(f"sigma {one.sigma:g}")
    spreads = [_spread(one) for one in clouds]
    return Plate(
        "fig-5-constellations",
        figure,
        "the stronger the noise, the further the copies of an image stray",
        "they lie "
        + ", ".join(f"{spread:.2f} at sigma {one.sigma:g}" for one, spread in zip(clouds, spreads, strict=True))
        + " from their mean on average",
        all(a < b for a, b in pairwise(spreads)),
    )


def _spread(one: Cloud) -> float:
    points = np.array(one.points)
    return float(np.linalg.norm(points - points.mean(axis=0), axis=1).mean())


def ways(study: Study, detector: Introspection, drawn: ActivationMap) -> Plate:
    """Fig. 6: images on their way to other classes."""
    tap, names = study.tap(detector.layers), study.class_names
    some = study.right[:FOLLOWED]
    found: list[Trajectory] = []
    figure, (axes, errors) = sheet(1, 2, width=5.2, height=4.6)
    ground(axes, drawn)
    for image, label in zip(some.pixels(), some.y.tolist(), strict=True):
        others = [k for k in range(len(names)) if k != label][:MOST_TARGETS]
        for target in others:
            way = trajectory(tap, detector, image, target)
            found.append(way)
            line = placed(way.points)
            axes.plot(line[:, 0], line[:, 1], color=of_class(target), lw=0.8)
            errors.plot(np.linspace(0, 1, len(way.errors)), way.errors, color=of_class(target), lw=0.8)
        start = within(way.points[0])
        axes.scatter(*start, marker="x", color="black", s=40)
    errors.set(xlabel="share of the way", ylabel="expected error (log10)")
    arrived = [way for way in found if way.arrives]
    peaking = [way for way in arrived if max(way.errors) > max(way.errors[0], way.errors[-1])]
    return Plate(
        "fig-6-trajectories",
        figure,
        "an image that is led to another class crosses places where an error is expected, and comes to where none is",
        f"of {len(found)} ways {len(arrived)} arrive, and on {len(peaking)} of these the greatest error is expected "
        "between their ends",
        len(peaking) > len(arrived) / 2 if arrived else None,
    )


def violins(errors: ErrorEstimates, labels: Tensor, right: Tensor, class_names: Sequence[str]) -> Plate:
    """Fig. 7: the error that is expected of right and wrong answers, by class and estimator."""
    figure, parts = sheet(2, 1, width=9.0, height=3.0)
    ranks = {}
    for axes, (name, values) in zip(parts, (("latent", errors.latent), ("hidden", errors.hidden)), strict=True):
        ranks[name] = _ranking(values, right)
        for k in range(len(class_names)):
            for wanted, colour, side in ((True, GREEN, -0.17), (False, RED, 0.17)):
                chosen = (labels == k) & (right == wanted)
                own = torch.tensor(values)[chosen].tolist()
                if len(own) > 1 and max(own) > min(own):
                    body = axes.violinplot([own], positions=[k + side], widths=0.3, showmedians=True)
                    lines = [body[part] for part in ("cmedians", "cbars", "cmins", "cmaxes")]
                    for part in (*lines, *cast("list[Collection]", body["bodies"])):
                        part.set_color(colour)
                elif own:
                    axes.scatter([k + side] * len(own), own, color=colour, s=8)
        axes.set_xticks(range(len(class_names)), class_names, rotation=30, ha="right", fontsize=7)
        axes.set(ylabel="expected error (log10)", xlabel="true class", title=f"the estimator that reads {name}")
    medians = [
        median(v for v, ok in zip(errors.hidden, right.tolist(), strict=True) if ok is wanted)
        for wanted in (True, False)
        if wanted in right.tolist()
    ]
    known = {name: value for name, value in ranks.items() if value is not None}
    return Plate(
        "fig-7-violins",
        figure,
        "a greater error is expected of mistakes than of right answers",
        "AUROC of mistakes: "
        + ", ".join(f"{name} {one.in_words}" for name, one in known.items())
        + f"; medians by the "
        f"hidden layer {medians[0]:.2f} (right) and {medians[1]:.2f} (wrong)"
        if known
        else "there are too few mistakes to tell",
        _above_chance(known["hidden"]) if known else None,
    )


def _ranking(values: Sequence[float], right: Tensor) -> Separation | None:
    """How well values tell mistakes from right answers; None of too few."""
    wrong = int((~right).sum())
    if wrong < FEWEST_MISTAKES or wrong == len(right):
        return None
    expected = np.array(values)
    return separation(expected[right.numpy()], expected[~right.numpy()])


def _above_chance(ranks: Separation) -> bool | None:
    """Whether an AUROC is; None where its interval does not tell."""
    return None if ranks.low <= 0.5 <= ranks.high else ranks.auroc > 0.5
