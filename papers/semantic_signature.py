"""Paper 003, "Using word embeddings to explore the learned representations of convolutional neural networks" (2019)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from torch import Tensor

from askance.calibration.harness import targets
from askance.calibration.images import Images
from askance.calibration.progress import say
from askance.colours import CLEAN, COLOURS, of_class
from askance.detectors import SemanticSignature
from askance.inside.semantics import LayerSemantics, Rivalry, rivalry, semantics
from askance.papers.plates import Plate, along_layers, picture, sheet
from askance.papers.study import Study

RANKS = (1, 3, 5, 7, 9)  # of targets, by the similarity of their words to the true class's
FEW_CLASSES = 50  # below which a step of one test is too much of all of them to draw a trend from
SAMPLES = 8  # images of Fig. 7
PER_ROW = 12  # layers of the diagram
WORST, BEST = 0.4, 1.0  # ends of its colours
FEWEST_MISTAKES = 30  # that say something of a layer
COLOUR = COLOURS[SemanticSignature.kind]
SHADES = "cividis"


def plates(study: Study) -> Iterator[Plate]:
    """Figs. 1 (2 of Inception), 3 (10 for longer), 4 (5), 6, 7, 8 (9), and what section 5.1 says of permuted labels."""
    detector = study.detector(SemanticSignature)
    if detector is None:
        return
    layers = [one.name for one in study.layers]
    say(f"2 vs 2 of {len(layers)} layers")
    found = semantics(layers, detector.word_correlations, lambda some: study.stream(some, study.seen))
    yield by_layer(found, len(study.class_names))
    yield diagram(found, len(study.class_names))
    true, permuted = (_followed(study, detector, permuted=way) for way in (False, True))
    if true is not None:
        yield over_training(true, len(study.class_names))
    if permuted is not None:
        yield of_permuted_labels(permuted, true, len(study.class_names))
    own = rivalry(detector, study.stream(detector.layers, study.seen))
    if own is not None:
        yield mistakes(own)
    if len(study.right):
        yield from targeted(study, detector)


def by_layer(found: Mapping[str, LayerSemantics], classes: int) -> Plate:
    """Fig. 1: 2 vs 2 by layer, beside what permuted words reach."""
    figure, (axes,) = sheet(width=max(6.0, 0.16 * len(found)))
    accuracy = [one.accuracy for one in found.values()]
    low, high = zip(*(one.chance for one in found.values()), strict=True)
    axes.fill_between(range(len(found)), low, high, color=CLEAN, alpha=0.35, label="95% of permutations")
    axes.plot(accuracy, "o-", color=COLOUR, markersize=3, label="2 vs 2")
    axes.axhline(0.5, color=CLEAN, lw=1)
    axes.set(ylabel="2-vs-2 accuracy (share of pairs)", ylim=(0, 1.02))
    along_layers(axes, found)
    axes.legend(fontsize=8)
    third = max(1, len(found) // 3)
    early, late = fmean(accuracy[:third]), fmean(accuracy[-third:])
    significant = sum(one.p_value <= 0.05 for one in found.values())
    few = (
        f"; of {classes} classes one test is a step of 1/{classes * (classes - 1) // 2}: no trend is drawn from that"
        if classes < FEW_CLASSES
        else ""
    )
    return Plate(
        "fig-1-two-versus-two",
        figure,
        "layers pass more of the 2-vs-2 tests than chance, deeper ones more than early ones",
        f"the first third of the layers pass {early:.0%} on average, the last {late:.0%}; {significant} of "
        f"{len(found)} layers are significant at 5% (BHY){few}",
        None if classes < FEW_CLASSES else bool(late > early and significant),
    )


def diagram(found: Mapping[str, LayerSemantics], classes: int) -> Plate:
    """Fig. 8: the network's layers, in the order in which they are done, coloured by 2 vs 2."""
    rows = -(-len(found) // PER_ROW)
    figure, (axes,) = sheet(width=1.25 * min(PER_ROW, len(found)), height=0.8 * rows + 0.4)
    shades = colormaps[SHADES]
    for at, (layer, one) in enumerate(found.items()):
        row, column = divmod(at, PER_ROW)
        x = column if row % 2 == 0 else PER_ROW - 1 - column  # as an ox ploughs: neighbours stay neighbours
        axes.annotate(
            f"{layer}\n{one.accuracy:.2f}",
            (x, -row),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if one.accuracy < (WORST + BEST) / 2 else "black",
            bbox={"boxstyle": "round,pad=.4", "fc": shades((one.accuracy - WORST) / (BEST - WORST)), "lw": 0.5},
        )
    axes.set(xlim=(-0.7, min(PER_ROW, len(found)) - 0.3), ylim=(-rows + 0.4, 0.6))
    axes.set_axis_off()
    best = max(found, key=lambda layer: found[layer].accuracy)
    return Plate(
        "fig-8-diagram",
        figure,
        "what a network knows of meaning is greatest at its end",
        f"the layer that passes most is {best} ({found[best].accuracy:.0%})",
        None if classes < FEW_CLASSES else list(found).index(best) >= len(found) * 2 // 3,
    )


@dataclass(frozen=True)
class Training:
    """How a network comes to what it knows.

    Attributes:
        epochs: that were kept, E.
        errors: the share of unseen images that are mistaken, at each.
        tests: 2 vs 2 at each, by layer.
    """

    epochs: list[int]
    errors: list[float]
    tests: dict[str, list[float]]

    def mean(self, at: int) -> float:
        """2 vs 2 over the layers at an epoch."""
        return fmean(values[at] for values in self.tests.values())


def _followed(study: Study, detector: SemanticSignature, *, permuted: bool) -> Training | None:
    """The checkpoints' 2 vs 2, of unseen images by what they are; None without checkpoints."""
    found = Training([], [], {layer: [] for layer in detector.layers})
    for checkpoint in study.checkpoints(permuted=permuted):
        found.epochs.append(checkpoint.epoch)
        predicted = study.predictions(study.seen, classifier=checkpoint.classifier)
        found.errors.append(float((predicted != study.seen.y).double().mean()))
        stream = study.stream(detector.layers, study.seen, classifier=checkpoint.classifier)
        for layer, one in detector.semantic_tests(stream).items():
            found.tests[layer].append(one["two_versus_two"])
    return found if found.epochs else None


def over_training(found: Training, classes: int) -> Plate:
    """Fig. 3: 2 vs 2 of some layers, and the error, over training."""
    figure, (error, accuracy) = sheet(1, 2)
    error.plot(found.epochs, found.errors, "o-", color=COLOUR, markersize=3)
    error.set(xlabel="epoch", ylabel="share of unseen images that are mistaken", ylim=(0, 1))
    _curves(accuracy, found, "epoch")
    first, last = found.mean(0), found.mean(-1)
    return Plate(
        "fig-3-over-training",
        figure,
        "layers come to know of meaning while the network is trained",
        f"over its layers 2 vs 2 is {first:.0%} at epoch {found.epochs[0]} and {last:.0%} at epoch {found.epochs[-1]}, "
        f"where {found.errors[-1]:.1%} of unseen images are mistaken",
        None if classes < FEW_CLASSES else last > first,
    )


def of_permuted_labels(permuted: Training, true: Training | None, classes: int) -> Plate:
    """Section 5.1: 2 vs 2 of a network that learns permuted labels, beside one that learns the true ones."""
    shown = {"permuted labels": permuted} | ({} if true is None else {"true labels": true})
    figure, parts = sheet(1, len(shown))
    for axes, (name, one) in zip(parts, shown.items(), strict=True):
        _curves(axes, one, f"epoch, {name}")
    told = " and ".join(f"{one.mean(-1):.0%} by {name}" for name, one in shown.items())
    begun = f"{permuted.mean(0):.0%} at epoch {permuted.epochs[0]}"
    return Plate(
        "permuted-labels",
        figure,
        "a network that learns permuted labels by heart learns nothing of meaning",
        f"over its layers 2 vs 2 is {begun}, and in the end {told}",
        None if classes < FEW_CLASSES or true is None else permuted.mean(-1) < true.mean(-1),
    )


def _curves(axes: Axes, found: Training, label: str) -> None:
    for place, (layer, values) in enumerate(found.tests.items()):
        axes.plot(found.epochs, values, "o-", color=of_class(place), markersize=3, label=layer)
    axes.axhline(0.5, color=CLEAN, lw=1)
    axes.set(xlabel=label, ylabel="2-vs-2 accuracy (share of pairs)", ylim=(0, 1.02))
    axes.legend(fontsize=7)


def mistakes(own: Rivalry) -> Plate:
    """Fig. 4: 1 vs 2 of the classifier's own mistakes, the true class against the one predicted."""
    figure, (axes,) = sheet(width=5.5)
    _drawn(axes, own, COLOUR, "own mistakes")
    axes.legend(fontsize=8)
    first, last = (own.shares[layer] for layer in (next(iter(own.shares)), list(own.shares)[-1]))
    clear = {layer: abs(share - 0.5) > own.half_width(layer) for layer, share in own.shares.items()}
    return Plate(
        "fig-4-own-mistakes",
        figure,
        "of modern networks no layer tells the true class of a mistaken image better than chance",
        f"of {own.images} mistakes the first layer speaks for the true class in {first:.0%}, the last in {last:.0%}",
        None
        if own.images < FEWEST_MISTAKES
        else not any(share > 0.5 and clear[layer] for layer, share in own.shares.items()),
    )


def targeted(study: Study, detector: SemanticSignature) -> Iterator[Plate]:
    """Figs. 6 and 7: images led to a target, by the target's rank."""
    found: dict[int, Rivalry] = {}
    shown: list[tuple[Tensor, int, int]] = []
    for rank, images, pixels, aims in led(study, detector):
        one = rivalry(detector, study.stream(detector.layers, images, pixels))
        if one is None:
            continue
        found[rank] = one
        shown += [(pixels[at], int(images.y[at]), int(aims[at])) for at in (0, -1)]
    if not found:
        return
    yield _by_rank(found, study.budgets[-1])
    yield _samples(shown[:SAMPLES], study.class_names, study.budgets[-1])


def led(study: Study, detector: SemanticSignature) -> Iterator[tuple[int, Images, Tensor, Tensor]]:
    """By the rank of the target: the images that PGD at the strongest budget leads there, as they were; what it makes
    of them, as pixels; and the targets, [N].
    """
    for rank in (rank for rank in RANKS if rank < len(study.class_names)):
        aims = targets(detector.word_correlations, study.right.y, rank)
        pixels = study.pgd(study.budgets[-1], aims)
        hit = study.predictions(study.right, pixels) == aims
        yield rank, study.right[hit], pixels[hit], aims[hit]


def _by_rank(found: Mapping[int, Rivalry], budget: float) -> Plate:
    figure, (each, together) = sheet(1, 2, width=5.0)
    for place, (rank, one) in enumerate(found.items()):
        _drawn(each, one, of_class(place), f"rank {rank} ({one.images})")
    layers = list(next(iter(found.values())).shares)
    images = sum(one.images for one in found.values())
    mean = Rivalry(
        images=images,
        shares={layer: sum(one.shares[layer] * one.images for one in found.values()) / images for layer in layers},
    )
    _drawn(together, mean, COLOUR, f"all ranks ({images})")
    each.legend(fontsize=7, title="target", title_fontsize=7)
    together.legend(fontsize=8)
    first, last = mean.shares[layers[0]], mean.shares[layers[-1]]
    return Plate(
        "fig-6-targeted",
        figure,
        "early layers of images led to a target still speak for the true class, late ones for the target",
        f"of {images} images that PGD at {budget:.3g} leads to a target, {layers[0]} speaks for the true class in "
        f"{first:.0%} and {layers[-1]} in {last:.0%}",
        first - mean.half_width(layers[0]) > 0.5 > last + mean.half_width(layers[-1]),
    )


def _samples(shown: Sequence[tuple[Tensor, int, int]], class_names: Sequence[str], budget: float) -> Plate:
    figure, parts = sheet(1, len(shown), width=1.3, height=1.6)
    for axes, (image, true, target) in zip(parts, shown, strict=True):
        picture(axes, image)
        axes.set_title(f"{class_names[true]}\nto {class_names[target]}", fontsize=7)
    return Plate(
        "fig-7-samples",
        figure,
        "targeted adversarial images look like what they are of",
        f"images that PGD at {budget:.3g} leads to a target: see for yourself",
        None,
    )


def _drawn(axes: Axes, one: Rivalry, colour: str, label: str) -> None:
    shares = np.array(list(one.shares.values()))
    half = np.array([one.half_width(layer) for layer in one.shares])
    axes.errorbar(range(len(shares)), shares, half, fmt="o-", color=colour, capsize=2, markersize=3, label=label)
    axes.axhline(0.5, color=CLEAN, lw=1)
    axes.set(ylabel="1 vs 2 won by the true class (share)", ylim=(0, 1.02))
    along_layers(axes, one.shares)
