"""Answered: one image that was answered, for whoever looks at it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from askance.answers import Answer
from askance.service.call import Call


@dataclass(frozen=True)
class Answered:
    """An image, and what was said of it, whether or not its client was told.

    Attributes:
        call: who asked.
        answer: with a prediction and a screening.
        file: the image as it came; None where pixels did.
        pixels: float32 [C, H, W] in [0, 1], as they were screened.
        class_names: in the order of the probabilities.
    """

    call: Call
    answer: Answer
    file: bytes | memoryview | None
    pixels: NDArray[np.float32]
    class_names: Sequence[str]


Observer = Callable[[Answered], None]
"""Looks at an image once its answer is on its way; never waits for anything."""
