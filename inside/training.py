"""Training seen from inside: where images lie on one activation map of all epochs (paper 001, Fig. 2a)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from askance.detectors import Capture, CaptureStream, Introspection, IntrospectionOptions
from askance.errors import DataError
from askance.inside.activations import MAP_DIMENSIONS, labels_of

CYCLES = 5  # of the map's training: it is to be seen, and no score goes by it


@dataclass(frozen=True)
class Joined:
    """Streams, one after the other.

    Attributes:
        parts: of Captures of the same layers.
    """

    parts: Sequence[CaptureStream]

    def __iter__(self) -> Iterator[Capture]:
        return chain.from_iterable(self.parts)


@dataclass(frozen=True)
class Record:
    """Where the same images lie at each epoch.

    Attributes:
        points: on one map, [E, N, 2].
        labels: true classes, [N].
    """

    points: Tensor
    labels: Tensor

    def between_classes(self) -> list[float]:
        """Of each epoch the share of the points' variance that lies between the classes' means."""
        shares = []
        for points in self.points.double():
            total = ((points - points.mean(dim=0)) ** 2).sum()
            means = torch.stack([points[self.labels == k].mean(dim=0) for k in self.labels.unique()])
            counts = torch.stack([(self.labels == k).sum() for k in self.labels.unique()])
            between = (counts.unsqueeze(1) * (means - points.mean(dim=0)) ** 2).sum()
            shares.append(float(between / total) if total > 0 else 0.0)
        return shares


def record(options: IntrospectionOptions, epochs: Sequence[CaptureStream]) -> Record:
    """Learn one map of the activations of all epochs, and place the images on it at each.

    Args:
        options: of introspection; the map has two dimensions, whatever they say.
        epochs: Captures of the same images, with labels, one stream for each epoch.

    Raises:
        DataError: there are no epochs, or too few images.
    """
    if not epochs:
        raise DataError("no epochs were kept")
    quickly = options.model_copy(update={"latent_dimensions": MAP_DIMENSIONS, "cycles": CYCLES})
    detector = Introspection(quickly).fit(Joined(epochs))
    with torch.no_grad():
        points = [torch.cat([detector.map_points(capture) for capture in stream]) for stream in epochs]
    return Record(torch.stack(points), torch.cat([labels_of(capture) for capture in epochs[0]]))
