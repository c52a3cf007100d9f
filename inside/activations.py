"""What introspection shows: the activation map, the errors it expects, and the units sorted by what moves them.

Source: A. Pardo et al., "Coloring the black box" (2019), Figs. 2, 3 and 7, Eqs. 9 and 10.
"""

from __future__ import annotations

import torch
from torch import Tensor

from askance.detectors import Capture, CaptureStream, Introspection
from askance.errors import DataError
from askance.inside.data import EDGE, ActivationMap, ErrorEstimates, Row, SortedLayer

PLACES = 81  # along each side of the map's background
MOST_UNITS = 240  # of a layer that are kept to be drawn
MAP_DIMENSIONS = 2
DECIMALS = 3
SILENT = 1e-6  # a variance, of standardised numbers


def introspected(detector: Introspection, images: CaptureStream) -> tuple[ActivationMap | None, ErrorEstimates]:
    """Where these images lie, unless z has not two numbers; and what both estimators expect of them."""
    readings = [detector.read(capture) for capture in images]
    points = torch.cat([one.evidence["point"] for one in readings])
    reads, score = detector.options.estimator_reads, "estimated_error"
    other = "latent" if reads == "hidden" else "hidden"

    def values(component: str) -> Row:
        return _rows(torch.cat([one.components[component] for one in readings]).unsqueeze(0))[0]

    drawn = _map(detector, points) if points.shape[1] == MAP_DIMENSIONS else None
    return drawn, ErrorEstimates(**{reads: values(score), other: values(f"{score}:{other}")})


def _map(detector: Introspection, points: Tensor) -> ActivationMap:
    axis = torch.linspace(-EDGE, EDGE, PLACES).to(points)
    up, right = torch.meshgrid(axis, axis, indexing="ij")
    background = detector.estimate_at(torch.stack([right, up], dim=2).flatten(0, 1)).view(PLACES, PLACES)
    return ActivationMap(points=tuple((first, second) for first, second in _rows(points)), background=_rows(background))


def sorted_network(detector: Introspection, fitted: CaptureStream) -> dict[str, SortedLayer]:
    """The layers' units by the class that moves them most: by what the decoder expects, beside what was fitted on.

    Units that never vary are left out: nothing moves them.
    """
    expected = detector.expected_activations()
    sums, squares = torch.zeros_like(expected), torch.zeros_like(expected[0])
    counts = torch.zeros(len(expected), dtype=torch.long)
    sizes: list[int] = []
    for capture in fitted:
        h, labels = detector.standardised(capture), labels_of(capture)
        sums.index_add_(0, labels.to(h.device), h)
        squares += (h * h).sum(dim=0)
        counts += torch.bincount(labels.cpu(), minlength=len(expected))
        sizes = sizes or [capture.flat(layer).shape[1] for layer in detector.layers]
    mean, variance = sums / counts.clamp_min(1).unsqueeze(1).to(sums), squares / counts.sum()
    variance -= (sums.sum(dim=0) / counts.sum()) ** 2
    parts = zip(detector.layers, *(part.split(sizes, dim=-1) for part in (expected, mean, variance)), strict=True)
    return {
        layer: _sorted(of_layer[:, varied > SILENT], seen[:, varied > SILENT], counts)
        for layer, of_layer, seen, varied in parts
        if bool((varied > SILENT).any())
    }


def labels_of(capture: Capture) -> Tensor:
    """The true classes, [B].

    Raises:
        DataError: it has none.
    """
    if capture.labels is None:
        raise DataError("what is seen inside is told by true classes: these images have no labels")
    return capture.labels


def _sorted(expected: Tensor, mean: Tensor, counts: Tensor) -> SortedLayer:
    """A layer, from E[h | class] as the decoder has it and as it was seen, [K, D] each."""
    known = counts > 0
    preferred = expected.argmax(dim=0)
    moved = torch.where(known.unsqueeze(1), mean, -torch.inf).argmax(dim=0)
    order = torch.argsort(preferred, stable=True)
    some = order[torch.linspace(0, len(order) - 1, min(len(order), MOST_UNITS)).long()]
    both = zip(expected, mean, known.tolist(), strict=True)
    return SortedLayer(
        units=len(order),
        preferred=tuple(preferred[some].tolist()),
        expected=_rows(expected[:, some]),
        agreement=float((preferred == moved).double().mean()),
        correlation=tuple(_correlation(one, other) if seen else None for one, other, seen in both),
    )


def _correlation(one: Tensor, other: Tensor) -> float | None:
    """Pearson's, None where one of them never varies."""
    one, other = one.double() - one.double().mean(), other.double() - other.double().mean()
    length = float(one.norm() * other.norm())
    return round(float(one @ other) / length, DECIMALS) if length > 0 else None


def _rows(values: Tensor) -> tuple[Row, ...]:
    return tuple(tuple(row) for row in values.double().round(decimals=DECIMALS).tolist())
