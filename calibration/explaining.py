"""Explaining one image beyond its answer: where noise, and steps to other classes, lead it on the activation map."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch

from askance.classifiers import trusting
from askance.detectors import Introspection, Tap
from askance.detectors.bundle import Bundle
from askance.errors import BundleError, ConfigError, DataError, did_you_mean
from askance.inside.data import Wandering
from askance.inside.wandering import cloud, trajectory
from askance.reading import given
from askance.screening.bundle import SealedBundle
from askance.screening.images import MAX_PIXELS, Pixels, decode

ALL = "all"


def pixels_of(bundle: SealedBundle, image: Path) -> Pixels:
    """An image file as the bundle's classifier takes it, float32 [C, H, W] in [0, 1].

    Raises:
        DataError: it is none.
    """
    return decode(given(image, DataError), bundle.manifest.classifier.preprocessing, MAX_PIXELS)


def targets_of(bundle: SealedBundle, toward: str, predicted: int) -> list[int]:
    """The classes that are meant by a name, or by "all": each but the one predicted.

    Raises:
        ConfigError: there is no such class, or it is the one predicted.
    """
    names = bundle.manifest.classifier.class_names
    if toward == ALL:
        return [k for k in range(len(names)) if k != predicted]
    if toward not in names:
        raise ConfigError(f"--toward: unknown class {toward!r}: {did_you_mean(toward, (*names, ALL))}")
    if names.index(toward) == predicted:
        raise ConfigError(f"--toward: the image is taken for {toward} already: name another class, or {ALL}")
    return [names.index(toward)]


def wander(
    bundle: SealedBundle,
    image: Pixels,
    sigmas: Sequence[float],
    targets: Sequence[int],
    allowed_factories: Collection[str] = (),
) -> Wandering:
    """Where noisy copies of an image lie, and where it goes towards other classes; computed in torch.

    Args:
        bundle: with introspection.
        image: float32 [C, H, W] in [0, 1].
        sigmas: standard deviations of noise, in pixel values.
        targets: classes.
        allowed_factories: as for `askance.open`.

    Raises:
        BundleError: it has no introspection, or its classifier cannot be built.
        DataError: its map has not two dimensions.
    """
    if not sigmas and not targets:
        return Wandering()
    opened = Bundle.of(bundle)
    detector = opened.detectors().get(Introspection.kind)
    if not isinstance(detector, Introspection):
        raise BundleError(f"{bundle.path} has no introspection, and so no activation map: add it to its config")
    normalize = bundle.manifest.classifier.preprocessing.normalize
    pixels = torch.tensor(image)
    with Tap(opened.classifier(trusting(allowed_factories)), detector.layers, normalize) as tap:
        return Wandering(
            clouds=tuple(cloud(tap, detector, pixels, sigma) for sigma in sigmas),
            trajectories=tuple(trajectory(tap, detector, pixels, target) for target in targets),
        )


def in_words(wandering: Wandering, predicted: int, class_names: Sequence[str]) -> Iterator[str]:
    """What came of it, a line each."""
    for one in wandering.clouds:
        staying = sum(k == predicted for k in one.predicted) / len(one.predicted)
        yield (
            f"noise of {one.sigma:g}: {staying:.0%} of {len(one.predicted)} copies are taken for "
            f"{class_names[predicted]}, an error of {_error(sorted(one.errors)[len(one.errors) // 2])} is expected"
        )
    for way in wandering.trajectories:
        steps, there = len(way.points) - 1, "arrives" if way.arrives else "does not arrive"
        yield (
            f"towards {class_names[way.target]}: {there} in {steps} steps; an error of {_error(way.errors[0])} is "
            f"expected at the start, {_error(max(way.errors))} at most on the way, {_error(way.errors[-1])} at the end"
        )


def _error(log10: float) -> str:
    return f"{10 ** min(0.0, log10):.2g}"
