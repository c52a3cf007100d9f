"""Comparison: whether a bundle's graph has a Screen say what torch does, image by image."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from askance.detectors.bundle import BuildClassifier, Bundle
from askance.errors import BundleError
from askance.images import Batch
from askance.judgement.margins import spread
from askance.screening.images import Pixels
from askance.screening.reading import Numbers, Reader, in_numbers, slack_of
from askance.screening.screen import Screen

CLOSE = 1e-4  # how far a score may be from torch's, as a share of it and of the spread of clean ones


def verify_graphs(bundle: Bundle, build: BuildClassifier) -> int:
    """Hold a bundle's graphs against the classifier itself, on its sentinels and on images that nobody has taken.

    Args:
        bundle: opened.
        build: makes the classifier.

    Returns:
        How many images were judged by both.

    Raises:
        BundleError: there is no graph, a part does not fit, or the two judge an image otherwise.
    """
    images = np.concatenate([bundle.sentinels().images, extremes(bundle.manifest.classifier.preprocessing.shape)])
    for single_pass in (False, True) if bundle.manifest.calibration.single_pass else (False,):
        with closing(bundle.screen(build, single_pass=single_pass)) as screen:
            by_graph = bundle.screen_by_graph(single_pass=single_pass)
            if (why := difference(screen, by_graph.reader, images)) is not None:
                raise BundleError(f"{bundle.path}: its graph does not compute what torch does here: {why}")
    return len(images)


def difference(screen: Screen, reader: Reader, images: Batch) -> str | None:
    """What another reader would have a Screen say otherwise of images [B, C, H, W], in words; None where nothing.

    Scores may differ by a ten-thousandth, or as the last bits of what they are made of let them; classes and flags may
    where the last bits decide. Components that were rounded may by a step of that: with few clean images, or where
    those lie close together, it is a rank, and what follows from a rank is no fault of the reader's.
    """
    calibration = screen.calibration
    (logits, readings), (others, other_readings) = screen.reader(images), reader(images)
    other_readings = {name: but_for_a_step(one, readings[name]) for name, one in other_readings.items()}
    one, other = in_numbers(readings, logits), in_numbers(other_readings, others)
    bounds = calibration.bounds(one, slack_of(readings))
    decided = ~screen.undecided(one, readings, bounds)
    found = []
    if (one.predicted != other.predicted)[decided].any():
        found.append("another class")
    if not (_alike(others, logits) and _alike(reader.classify(images), logits)):
        found.append("other logits")
    tables, judged = calibration.of_every_score, calibration.judge(other)
    for name, (scores, p) in calibration.judge(one).items():
        (_, low, high), (other_scores, other_p) = bounds[name], judged[name]
        off = np.abs(other_scores - scores)
        among = (low <= other_scores) & (other_scores <= high)
        known = np.isfinite(scores)
        if (~among & (off > CLOSE * (np.abs(scores) + spread(tables[name]))) & known).any():
            found.append(f"{name} is off by {off[known & ~among].max():.3g}")
        if not np.array_equal(known, np.isfinite(other_scores)):
            found.append(f"{name} is a number in one alone")
        for level, alpha in calibration.levels.items():
            if ((p <= alpha) != (other_p <= alpha))[decided & known].any():
                found.append(f"{name} is flagged {level} in one alone")
    return found[0] if found else None


def but_for_a_step(one: Numbers, of_torch: Numbers) -> Numbers:
    """A Reading with torch's own components where they are no more than a step of their rounding away."""
    if not of_torch.step:
        return one
    own = {
        name: np.where(np.abs(values - of_torch.components[name]) <= of_torch.step, of_torch.components[name], values)
        for name, values in one.components.items()
    }
    return replace(one, components=own)


def _alike(logits: NDArray[Any], of_torch: NDArray[Any]) -> bool:
    """Whether logits [B, K] are those of torch, but for a ten-thousandth of what an image's lie apart."""
    numbers = np.isfinite(of_torch)
    if not np.array_equal(np.isfinite(logits), numbers):
        return False
    judged = numbers.all(axis=1)
    logits, of_torch = logits[judged], of_torch[judged]
    apart = np.ptp(of_torch, axis=1, keepdims=True)
    return bool((np.abs(logits - of_torch) <= CLOSE * apart).all())


def extremes(shape: tuple[int, int, int]) -> Pixels:
    """Images of one value, of stripes and of noise, [8, C, H, W]."""
    noise = np.random.default_rng(1).random((3, *shape), dtype=np.float32)
    stripes = np.zeros((2, *shape), dtype=np.float32)
    stripes[0, :, ::2], stripes[1, :, :, ::2] = 1, 1
    plain = np.stack([np.full(shape, value, dtype=np.float32) for value in (0.0, 0.5, 1.0)])
    return np.concatenate([plain, stripes, noise])
