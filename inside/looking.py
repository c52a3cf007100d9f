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
from askance.inside.activations import introspected, labels_of, sorted_network
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
    parts: dict[str, object] = {
        "class_names": class_names,
        "labels": labels.tolist(),
        "predicted": predicted.tolist(),
    }
    introspection, maps, libraries, semantics = (
        detectors.get(one.kind) for one in (Introspection, SelfOrganizingMap, LibraryNetwork, SemanticSignature)
    )
    if isinstance(introspection, Introspection):
        parts["activation_map"], parts["errors"] = introspected(introspection, images)
        parts["sorted_network"] = sorted_network(introspection, fitted)
    if isinstance(maps, SelfOrganizingMap):
        parts["codes"] = codes(maps, images, labels, len(class_names))
    if isinstance(libraries, LibraryNetwork):
        parts["confusion"] = libraries.confusion(images)
    if isinstance(semantics, SemanticSignature):
        passes = torch.cat([semantics.read(capture).evidence["passes"] for capture in images]).double()
        quantiles = passes.quantile(torch.tensor([0.05, 0.5, 0.95]).to(passes), dim=0)
        parts["profiles"] = dict(zip(semantics.layers, quantiles.T.tolist(), strict=True))
    return Inside.model_validate(parts)
