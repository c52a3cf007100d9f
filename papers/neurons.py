"""Paper 002, Y. Dong et al., "Towards interpretable deep neural networks by leveraging adversarial examples" (2019).

Its abstract is what there is of it: see `askance.inside.neurons` for what is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from askance.calibration.images import Images
from askance.colours import ATTACKED, CLEAN, of_class
from askance.detectors import SemanticSignature
from askance.inside.neurons import Consistency, by_words, consistency, excitations, exciting, interval
from askance.papers.plates import Plate, along_layers, picture, sheet
from askance.papers.study import Study

BUDGET = 2  # of the study's, in their order
LED = 1_000  # images at most, towards other classes
SHOWN, EXAMPLES = 10, 9  # neurons at either end, and images of each
POPULATIONS = {"clean": CLEAN, "attacked": ATTACKED, "both": "black"}


def plates(study: Study) -> Iterator[Plate]:
    """How consistent neurons are, on usual images, attacked ones and both; and the images that excite some of them."""
    layers = [one.name for one in study.layers if one.name in study.tapped and one.form != "other"]
    images = study.all_right[:LED]
    if not layers or not len(images):
        return
    epsilon, count = study.budgets[BUDGET], len(study.class_names)
    # at random among the other classes, so that none is led to more often than it is led from
    further = torch.randint(1, count, (len(images),), generator=torch.Generator().manual_seed(0))
    attacked = study.pgd(epsilon, (images.y + further) % count, images)
    usual, moved = (_fired(study, layers, images, pixels) for pixels in (images.pixels(), attacked))
    both = {layer: torch.cat([usual[layer], moved[layer]]) for layer in layers}
    clean, affinity = _exciting(usual), torch.eye(count)
    found = {
        "clean": _layers(clean, images.y, affinity),
        "attacked": _layers(_exciting(moved), images.y, affinity),
        "both": _layers(_exciting(both), images.y.repeat(2), affinity),
    }
    words = study.detector(SemanticSignature)
    by_word = None if words is None else _layers(clean, images.y, by_words(words.word_correlations))
    yield by_layer(found, by_word, epsilon)
    for layer, one in found["clean"].items():
        yield neurons(layer, one, clean[layer], images, study)


def _fired(study: Study, layers: list[str], images: Images, pixels: Tensor) -> dict[str, Tensor]:
    parts = [excitations(capture) for capture in study.stream(layers, images, pixels)]
    return {layer: torch.cat([part[layer] for part in parts]) for layer in layers}


def _exciting(fired: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {layer: exciting(values) for layer, values in fired.items()}


def _layers(excited: Mapping[str, Tensor], labels: Tensor, affinity: Tensor) -> dict[str, Consistency]:
    found = {layer: consistency(one, labels, affinity) for layer, one in excited.items()}
    return {layer: one for layer, one in found.items() if one is not None}


def by_layer(
    found: Mapping[str, Mapping[str, Consistency]], by_word: Mapping[str, Consistency] | None, epsilon: float
) -> Plate:
    """How consistent neurons are by layer; the paper's claim, by neurons that fire in both."""
    figure, (axes,) = sheet(width=6.0)
    for name, layers in found.items():
        means = np.array([one.mean for one in layers.values()])
        ends = np.array([(one.low, one.high) for one in layers.values()]).T
        axes.errorbar(
            range(len(means)), means, np.abs(ends - means), fmt="o-", capsize=3, color=POPULATIONS[name], label=name
        )
    axes.axhline(0, color="grey", lw=0.5)
    axes.set_ylabel("consistency (0: chance, 1: one class)")
    axes.legend(fontsize=8)
    along_layers(axes, found["clean"])
    falls = [
        _fall(one, found["attacked"][layer]) for layer, one in found["clean"].items() if layer in found["attacked"]
    ]
    told = "; ".join(
        f"{name} " + ", ".join(f"{layer} {one.mean:.2f}" for layer, one in layers.items())
        for name, layers in (*found.items(), *([("clean, by words", by_word)] if by_word else []))
    )
    return Plate(
        "consistency",
        figure,
        "neurons that fire for one concept on usual images fire for several under attack",
        f"{told} (PGD that aims at another class, within {epsilon:.3g})",
        True if all(low > 0 for low, _ in falls) else None if any(high > 0 for _, high in falls) else False,
    )


def _fall(clean: Consistency, attacked: Consistency) -> tuple[float, float]:
    """By how much consistency falls under attack, 95% interval over the neurons that fire in both."""
    values = dict(zip(attacked.neurons, attacked.consistency, strict=True))
    both = zip(clean.neurons, clean.consistency, strict=True)
    falls = np.array([value - values[neuron] for neuron, value in both if neuron in values])
    return interval(falls) if len(falls) else (0.0, 0.0)


def neurons(layer: str, found: Consistency, excited: Tensor, images: Images, study: Study) -> Plate:
    """The most and the least consistent neurons of a layer, and images that excite them."""
    order = np.argsort(-np.array(found.consistency), kind="stable")
    chosen = order if len(order) <= 2 * SHOWN else np.concatenate([order[:SHOWN], order[-SHOWN:]])
    rows = -(-len(chosen) // 2)
    figure, parts = sheet(rows, 2, width=5.0, height=0.75)
    for axes in parts:
        axes.set_axis_off()
    for place, chosen_one in enumerate(chosen.tolist()):
        axes = parts[2 * (place % rows) + place // rows]
        neuron, value = found.neurons[chosen_one], found.consistency[chosen_one]
        which = excited[neuron][excited[neuron] >= 0]
        picture(axes, torch.cat(list(images[which[:EXAMPLES]].pixels()), dim=2))
        classes = torch.bincount(images.y[which], minlength=len(study.class_names))
        most = int(classes.argmax())
        axes.set_title(
            f"{neuron}: {value:.2f}, {int(classes[most]) / int(classes.sum()):.0%} {study.class_names[most]}",
            fontsize=7,
            color=of_class(most),
            loc="left",
        )
    return Plate(
        f"neurons-{layer}",
        figure,
        "what the most consistent neurons fire for is of one kind",
        f"{len(order)} neurons of {layer} fire; the most consistent one {found.consistency[order[0]]:.2f}, the least "
        f"{found.consistency[order[-1]]:.2f}: see for yourself",
        None,
    )
