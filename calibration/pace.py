"""How fast a classifier is here, from which follows about how long work on many images takes."""

from __future__ import annotations

import time

import torch

from askance.calibration.inputs import CalibrationInputs

TIMED_IMAGES = 16
TIMES, ENOUGH_SECONDS = 5, 1.0  # the fastest of so many passes counts, of fewer where they take that long


@torch.no_grad()
def seconds_per_image(inputs: CalibrationInputs) -> float:
    """Of one forward pass: the fastest of some, for on a busy machine a short one may be held up by a hundred times."""
    pixels = inputs.splits["fit"][:TIMED_IMAGES].pixels()
    images = inputs.preprocessing.normalize(pixels)
    inputs.classifier(images)  # the first of all takes longer
    passes: list[float] = []
    while len(passes) < TIMES and sum(passes) < ENOUGH_SECONDS:
        begun = time.perf_counter()
        inputs.classifier(images)
        passes.append(time.perf_counter() - begun)
    return min(passes) / len(images)


def in_words(seconds: float) -> str:
    """A rough duration for people."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
