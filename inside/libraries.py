"""What library networks show by their thresholds: how large they are, how often they agree, what confuses them.

Source: J. H. Lee, "Library network, a possible path to explainable neural networks" (2019), Figs. 2, 3 and 4, Eq. 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from askance.detectors import CaptureStream, LibraryNetwork, LibraryNetworkOptions
from askance.inside.data import Part, Row, Share

THETAS = (0.65, 0.75)  # at which the paper compares layers


class LibraryPoint(Part):
    """A layer's library by one threshold.

    Attributes:
        theta: the threshold.
        rows: how many patterns it stores.
        top1, top3: the share of images whose predicted class is its best answer, or among its best three.
    """

    theta: float
    rows: int
    top1: Share
    top3: Share


class Libraries(Part):
    """Library networks of several thresholds.

    Attributes:
        curves: of each layer, by ascending threshold.
        confusion: by a threshold that all layers have, the confusion index of each layer, NaN as None: rows are true
            classes, columns what their libraries say beside.
    """

    curves: Mapping[str, tuple[LibraryPoint, ...]]
    confusion: Mapping[float, Mapping[str, tuple[tuple[float | None, ...], ...]]]

    def sizes(self, theta: float) -> dict[str, int]:
        """The rows of each layer by a threshold that all have."""
        return {layer: next(p.rows for p in points if p.theta == theta) for layer, points in self.curves.items()}


def libraries(
    layers: Sequence[str],
    rows: Sequence[int],
    neighbors: int,
    fitted: CaptureStream,
    images: CaptureStream,
    sample: tuple[CaptureStream, int] | None = None,
) -> Libraries:
    """Libraries of about so many rows each, and those by THETAS.

    Args:
        layers: to have libraries of.
        rows: wanted of each layer, one detector for each number; none is greater than there are images to fit on.
        neighbors: k, of the answers.
        fitted: what they are built from.
        images: others, with labels, by which they are compared.
        sample: some of what they are built from, and of how many; thresholds for so many rows are found by these, or by
            all of them.

    Raises:
        DataError: a stream is empty.
    """
    curves: dict[str, list[LibraryPoint]] = {layer: [] for layer in layers}
    confusion = {}
    for options in _options(tuple(layers), rows, neighbors):
        detector = LibraryNetwork(options)
        detector.settle(*((fitted, None) if sample is None else sample))
        detector.build(fitted).connect(fitted)  # no short lists: finding one takes longer than it saves on few images
        assert detector.options.thresholds is not None
        for layer, figures in detector.agreement(images).items():
            theta = detector.options.thresholds[layer]
            curves[layer].append(LibraryPoint.model_validate({"theta": theta, **figures}))
        if options.thresholds is not None:
            confusion[next(iter(options.thresholds.values()))] = detector.confusion(images)
    ordered = {layer: tuple(sorted(points, key=lambda point: point.theta)) for layer, points in curves.items()}
    return Libraries.model_validate({"curves": ordered, "confusion": confusion})


def _options(layers: tuple[str, ...], rows: Sequence[int], neighbors: int) -> Iterator[LibraryNetworkOptions]:
    for theta in THETAS:
        yield LibraryNetworkOptions(thresholds=dict.fromkeys(layers, theta), neighbors=neighbors)
    for wanted in rows:
        yield LibraryNetworkOptions(thresholds=None, rows=wanted, library_layers=layers, neighbors=neighbors)


def most_confusing(confusion: Sequence[Sequence[float | None]]) -> int:
    """The true class whose images make a layer's library hesitate most: the greatest mean beside the diagonal."""

    def mean(at: int) -> float:
        others = [value for column, value in enumerate(confusion[at]) if column != at and value is not None]
        return sum(others) / len(others) if others else -1.0

    return max(range(len(confusion)), key=mean)


class Agreement(Part):
    """CPL, by which library networks tell attacked images from clean ones (paper 000, Fig. 5).

    Attributes:
        clean: CPL of clean images.
        attacked: of those that fool the classifier, by budget.
    """

    clean: Row
    attacked: Mapping[float, Row]
