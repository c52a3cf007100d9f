"""Comparison: whether a bundle's graph has a Screen say what torch does, image by image."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from askance.detectors.bundle import BuildClassifier, Bundle
from askance.detectors.reader import Reader, in_numbers, slack_of
from askance.detectors.screen import Screen
from askance.engines import Engine
from askance.errors import BundleError
from askance.judgement.margins import spread

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
    images = torch.cat([bundle.sentinels().images, extremes(bundle.manifest.classifier.preprocessing.shape)])
    for single_pass in (False, True) if bundle.manifest.calibration.single_pass else (False,):
        with closing(bundle.screen(build, single_pass=single_pass)) as screen:
            by_graph = bundle.screen_by(Engine.ONNXRUNTIME, build, single_pass=single_pass)
            if (why := difference(screen, by_graph.reader, images)) is not None:
                raise BundleError(f"{bundle.path}: its graph does not compute what torch does here: {why}")
    return len(images)


def difference(screen: Screen, reader: Reader, images: Tensor) -> str | None:
    """What another reader would have a Screen say otherwise of images [B, C, H, W], in words; None where nothing.

    Scores may differ by a ten-thousandth, or as the last bits of what they are made of let them; classes and flags may
    where the last bits decide.
    """
    calibration = screen.calibration
    (logits, readings), (others, other_readings) = screen.reader(images), reader(images)
    one, other = in_numbers(readings, logits), in_numbers(other_readings, others)
    decided = ~screen.undecided(one, readings)
    found = []
    if (one.predicted != other.predicted)[decided].any():
        found.append("another class")
    if not (_alike(others, logits) and _alike(reader.classify(images), logits)):
        found.append("other logits")
    tables, judged = {**calibration.tables, **calibration.judged}, calibration.judge(other)
    ends = calibration.ends(one, slack_of(readings))
    for name, (scores, p) in calibration.judge(one).items():
        (low, high), (other_scores, other_p) = ends[name], judged[name]
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


def _alike(logits: Tensor, of_torch: Tensor) -> bool:
    """Whether logits [B, K] are those of torch, but for a ten-thousandth of what an image's lie apart."""
    numbers = of_torch.isfinite()
    if not torch.equal(logits.isfinite(), numbers):
        return False
    judged = numbers.all(dim=1)
    logits, of_torch = logits[judged], of_torch[judged]
    apart = of_torch.amax(dim=1, keepdim=True) - of_torch.amin(dim=1, keepdim=True)
    return bool(((logits - of_torch).abs() <= CLOSE * apart).all())


def extremes(shape: tuple[int, int, int]) -> Tensor:
    """Images of one value, of stripes and of noise, [8, C, H, W]."""
    noise = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))
    stripes = torch.zeros(2, *shape)
    stripes[0, :, ::2], stripes[1, :, :, ::2] = 1, 1
    return torch.cat([torch.stack([torch.full(shape, value) for value in (0.0, 0.5, 1.0)]), stripes, noise])
