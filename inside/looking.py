"""Looking: what fitted detectors show of some images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from askance.detectors import (
    CaptureStream,
    Detector,
    Introspection,
    LibraryNetwork,
    SelfOrganizingMap,
    SemanticSignature,
)
from askance.detectors.tap import EMPTY_STREAM
from askance.errors import DataError
from askance.inside.activations import activation_map, error_estimates, labels_of, sorted_network
from askance.inside.codes import codes
from askance.inside.data import Inside


@torch.no_grad()
def look(
    detectors: Mapping[str, Detector], fitted: CaptureStream, images: CaptureStream, class_names: Sequence[str]
) -> Inside:
    """What these detectors show of images that nothing was fitted on, in some walks: no more than a batch is in memory.

    Args:
        detectors: fitted, by kind; those of other packages show nothing.
        fitted: Captures with labels, of all their layers, of images that they were fitted on.
        images: the same of images that nothing was fitted on; some thousand are enough.
        class_names: K.

    Raises:
        DataError: the stream is empty, or has no labels.
    """
    answers = [(labels_of(capture), capture.predicted) for capture in images]
    if not answers:
        raise DataError(EMPTY_STREAM)
    labels, predicted = (torch.cat(parts).cpu() for parts in zip(*answers, strict=True))
    shown = Inside(class_names=tuple(class_names), labels=tuple(labels.tolist()), predicted=tuple(predicted.tolist()))
    introspection, maps, libraries, semantics = (
        detectors.get(one.kind) for one in (Introspection, SelfOrganizingMap, LibraryNetwork, SemanticSignature)
    )
    parts: dict[str, object] = {}
    if isinstance(introspection, Introspection):
        parts["activation_map"] = activation_map(introspection, images)
        parts["errors"] = error_estimates(introspection, images)
        parts["sorted_network"] = sorted_network(introspection, fitted)
    if isinstance(maps, SelfOrganizingMap):
        parts["codes"] = codes(maps, images, labels, len(class_names))
    if isinstance(libraries, LibraryNetwork):
        index = libraries.confusion_index(images)
        parts["confusion"] = {
            layer: tuple(tuple(None if value != value else round(value, 4) for value in row) for row in rows)  # noqa: PLR0124 NaN
            for layer, rows in zip(libraries.layers, index.tolist(), strict=True)
        }
    if isinstance(semantics, SemanticSignature):
        passes = torch.cat([semantics.read(capture).evidence["passes"] for capture in images]).double()
        low, middle, high = passes.quantile(torch.tensor([0.05, 0.5, 0.95]).to(passes), dim=0).tolist()
        parts["profiles"] = dict(zip(semantics.layers, zip(low, middle, high, strict=True), strict=True))
    return shown.model_copy(update=parts)
