"""What self-organizing maps show: which codes a layer has for which class, and how homogeneous they are.

Source: J. H. Lee and S. Vijayan, "Generalization ability and vulnerabilities to adversarial perturbations": densities
of best matching units, the torus unfolded, centres of classes. That codes go from homogeneous to diverse is measured
here by information, purity and spread: the distance between centres, the paper's, is that of random points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from askance.detectors import CaptureStream, SelfOrganizingMap
from askance.detectors.self_organizing_map import layer_code
from askance.detectors.torus_map import TorusMap, class_center, grid_positions, torus_distance
from askance.inside.data import Codes

DECIMALS = 4
FEWEST = 5  # classes, that a correlation says anything of
MOST = 0.999999  # of a correlation: at 1 it has no interval


def codes(detector: SelfOrganizingMap, images: CaptureStream, labels: Tensor, classes: int) -> dict[str, Codes]:
    """Of each layer with a map, by images of these true classes [N]."""
    maps = detector.layer_maps()
    parts: dict[str, list[Tensor]] = {layer: [] for layer in maps}
    for capture in images:
        for layer, layer_map in maps.items():
            parts[layer].append(layer_map.standardise(layer_code(capture, layer)))
    found = {}
    for layer, layer_map in maps.items():
        standardised = torch.cat(parts[layer])
        units = layer_map.distances(standardised).argmin(dim=1)
        seen = torch.zeros(classes, layer_map.side**2, dtype=torch.long)
        seen.index_put_((labels, units.cpu()), torch.ones_like(labels), accumulate=True)
        hits, side = layer_map.hits.cpu(), layer_map.side
        quantization, topographic = layer_map.quality(standardised)
        found[layer] = Codes(
            side=side,
            fitted=tuple(map(tuple, hits.T.tolist())),
            seen=tuple(map(tuple, seen.tolist())),
            centres=tuple(_centre(of_class, side) for of_class in hits.T),
            information=round(information(hits), DECIMALS),
            purity=round(purity(hits), DECIMALS),
            spreads=spreads(hits, side),
            quantization_error=round(quantization, DECIMALS),
            topographic_error=round(topographic, DECIMALS),
        )
    return found


@torch.no_grad()
def quantization_errors(
    detector: SelfOrganizingMap, fitted: CaptureStream, images: CaptureStream
) -> dict[str, tuple[float, ...]]:
    """The quantization error of images after each epoch of maps that learn anew from others, by layer.

    Args:
        detector: whose options the maps learn by.
        fitted: what they learn from; its codes are held in memory.
        images: what is measured.
    """
    options = detector.options

    def learn(learned: Tensor, others: Tensor) -> tuple[float, ...]:
        layer_map, errors = TorusMap(options.side), list[float]()
        layer_map.train_units(
            learned,
            epochs=options.epochs,
            radius_end=options.radius_end,
            seed=options.seed,
            after_epoch=lambda: errors.append(round(layer_map.quality(layer_map.standardise(others))[0], DECIMALS)),
        )
        return tuple(errors)

    learned, others = (
        {layer: torch.cat([layer_code(c, layer) for c in stream]) for layer in detector.layers}
        for stream in (fitted, images)
    )
    return {layer: learn(learned[layer], others[layer]) for layer in detector.layers}


def information(hits: Tensor) -> float:
    """Mutual information of unit and class as a share of the class's entropy, from hits [U, K]; 0 of one class alone.

    The plug-in estimate, which is too high where hits are few.
    """
    joint = hits.double() / hits.sum()
    apart = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0, keepdim=True)
    shared = torch.where(joint > 0, joint * (joint / apart.clamp_min(torch.finfo(joint.dtype).tiny)).log(), 0.0).sum()
    entropy = float(torch.special.entr(joint.sum(dim=0)).sum())
    return min(1.0, max(0.0, float(shared) / entropy)) if entropy > 0 else 0.0


def purity(hits: Tensor) -> float:
    """The share of hits [U, K] that are of their unit's most frequent class."""
    return float(hits.amax(dim=1).sum() / hits.sum())


def spreads(hits: Tensor, side: int) -> tuple[float | None, ...]:
    """The mean torus distance of each class's hits [U, K] from its centre; None for a class that hit nothing."""
    positions = grid_positions(side)
    return tuple(
        round(
            float(torus_distance(positions, class_center(of_class, side), side) @ (of_class / of_class.sum()).float()),
            DECIMALS,
        )
        if of_class.sum() > 0
        else None
        for of_class in hits.T
    )


def correlation(pairs: Iterable[tuple[float | None, float | None]]) -> tuple[float, float, float] | None:
    """Pearson's r of pairs that are whole, and its 95% interval by Fisher's transformation.

    Returns:
        None for fewer than FEWEST pairs, or where one side never varies.
    """
    whole = torch.tensor([pair for pair in pairs if None not in pair], dtype=torch.float64)
    if len(whole) < FEWEST or bool((whole.std(dim=0) == 0).any()):
        return None
    r = float(torch.corrcoef(whole.T)[0, 1].clamp(-MOST, MOST))
    half = 1.96 / math.sqrt(len(whole) - 3)
    low, high = (math.tanh(math.atanh(r) + end) for end in (-half, half))
    return round(r, DECIMALS), round(low, DECIMALS), round(high, DECIMALS)


def _centre(hits: Tensor, side: int) -> tuple[float, float] | None:
    if not hits.sum():
        return None
    row, column = class_center(hits, side).tolist()
    return round(row, DECIMALS), round(column, DECIMALS)
