"""Wandering: where one image goes on the activation map, under noise and on its way to other classes.

Source: A. Pardo et al., "Coloring the black box" (2019), Figs. 5 and 6.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from askance.detectors import Capture, Introspection, Tap
from askance.errors import DataError
from askance.inside.activations import MAP_DIMENSIONS
from askance.inside.data import Cloud, Row, Trajectory

COPIES = 200  # of the paper's constellations
MOST_STEPS = 150
STEP = 0.005
"""Root mean square of what one step changes, in pixel values."""
ARRIVED = 0.99  # the target's probability at which a trajectory ends
DECIMALS = 3


@torch.no_grad()
def cloud(tap: Tap, detector: Introspection, image: Tensor, sigma: float, seed: int = 0) -> Cloud:
    """Where COPIES of an image with Gaussian noise lie (paper 001, Fig. 5).

    Args:
        tap: on the layers that the detector reads; takes pixels.
        detector: fitted, with a map of two dimensions.
        image: [C, H, W] in [0, 1].
        sigma: standard deviation of the noise, in pixel values; what leaves [0, 1] is clipped.
        seed: of the noise.

    Raises:
        DataError: its map has not two dimensions.
    """
    noise = torch.randn(COPIES, *image.shape, generator=torch.Generator().manual_seed(seed))
    points, errors, predicted = _seen(detector, tap((image + sigma * noise).clamp(0, 1)))
    return Cloud(sigma=sigma, points=points, errors=errors, predicted=predicted)


def trajectory(tap: Tap, detector: Introspection, image: Tensor, target: int) -> Trajectory:
    """Where an image goes that is changed, step by step, until the classifier takes it for another class.

    Each step goes down the gradient of the cross-entropy to the target: that of the squared error, as in the paper,
    vanishes where a classifier is sure (paper 001, Fig. 6).

    Args:
        tap, detector, image: as for `cloud`.
        target: the class.

    Raises:
        DataError: the map has not two dimensions.
    """
    wanted = torch.tensor([target])
    length = STEP * math.sqrt(image.numel())
    at, steps = image.unsqueeze(0), list[Capture]()
    for _ in range(MOST_STEPS + 1):
        at = at.detach().requires_grad_(True)
        with torch.enable_grad():
            capture = tap(at)
            (down,) = torch.autograd.grad(F.cross_entropy(capture.logits, wanted), at)
        seen = Capture(capture.logits.detach(), {name: a.detach() for name, a in capture.activations.items()})
        steps.append(seen)
        if float(seen.logits.softmax(dim=1)[0, target]) >= ARRIVED:
            break
        at = (at - length * down / down.norm().clamp_min(torch.finfo(down.dtype).tiny)).clamp(0, 1)
    with torch.no_grad():
        points, errors, predicted = (
            tuple(value for part in parts for value in part)
            for parts in zip(*(_seen(detector, step) for step in steps), strict=True)
        )
    return Trajectory(target=target, points=points, errors=errors, predicted=predicted)


def _seen(detector: Introspection, capture: Capture) -> tuple[tuple[tuple[float, float], ...], Row, tuple[int, ...]]:
    """Points on the map, log10 of the errors expected, and classes predicted."""
    reading = detector.read(capture)
    points = reading.evidence["point"]
    if points.shape[1] != MAP_DIMENSIONS:
        raise DataError(
            f"introspection's map has {points.shape[1]} dimensions, and is drawn with two: latent_dimensions = 2"
        )
    rounded = points.double().round(decimals=DECIMALS).tolist()
    errors = reading.score.double().round(decimals=DECIMALS).tolist()
    return tuple((first, second) for first, second in rounded), tuple(errors), tuple(capture.predicted.tolist())
