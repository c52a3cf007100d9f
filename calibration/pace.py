"""How fast a classifier is here, from which follows about how long work on many images takes."""

from __future__ import annotations

import time

import torch

from askance.calibration.inputs import CalibrationInputs

TIMED_IMAGES = 16


@torch.no_grad()
def seconds_per_image(inputs: CalibrationInputs) -> float:
    """Of one forward pass, from one batch after another that is not timed."""
    pixels = inputs.splits["fit"][:TIMED_IMAGES].pixels()
    images = inputs.preprocessing.normalize(pixels)
    inputs.classifier(images)
    begun = time.perf_counter()
    inputs.classifier(images)
    return (time.perf_counter() - begun) / len(images)


def in_words(seconds: float) -> str:
    """A rough duration for people."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
