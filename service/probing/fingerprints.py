"""Fingerprints: hashes by which an image that is nearly the same as one of late is found.

Source: H. Li et al., "Blacklight: scalable defense for neural networks against query-based black-box attacks" (2022):
hashes of quantised segments. Theirs slide over the image, and the greatest are kept; ours are at places that each
process draws anew, which costs a tenth. Nobody knows which segments count.
"""

from __future__ import annotations

import secrets

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Hashes = NDArray[np.uint64]

LEVEL = 50  # of 255: a smaller change is mostly none (the paper's quantisation step)
WINDOW = 12  # numbers of a segment, side by side
PLACES, KEPT = 96, 24  # segments that are looked at, and hashes of an image (the paper keeps 50)
MOST_NUMBERS = 4096  # of an image: of larger ones each n-th pixel


class Fingerprints:
    """Hashes images of one shape with a key of its own.

    Args:
        numbers: of an image.

    Attributes:
        numbers: as given.
    """

    def __init__(self, numbers: int) -> None:
        self.numbers = numbers
        rng = np.random.default_rng(secrets.randbits(128))
        starts = rng.choice(max(numbers - WINDOW, 0) + 1, PLACES)
        self._places = np.minimum(starts[:, None] + np.arange(WINDOW), numbers - 1)
        self._factors = rng.integers(2**64, size=WINDOW, dtype=np.uint64)
        self._keys = rng.integers(2**64, size=PLACES, dtype=np.uint64)  # the same numbers elsewhere are another segment

    def of(self, numbers: Bytes) -> Hashes:
        """At most KEPT hashes; of segments that are not of one level, where there are any: black ones are in every
        image of a digit.

        Args:
            numbers: of an image, uint8 [D].
        """
        segments = (numbers // np.uint8(LEVEL))[self._places]
        hashes: Hashes = segments @ self._factors ^ self._keys
        (varied,) = np.nonzero((segments != segments[:, :1]).any(axis=1))
        return hashes[varied[:KEPT] if len(varied) else slice(KEPT)]


def thinned(pixels: NDArray[np.float32]) -> Bytes:
    """The numbers of an image, [C, H, W] in [0, 1], by pixel, uint8 [D]; of a large one those of each n-th row and
    column.
    """
    step = 1
    while pixels[:, ::step, ::step].size > MOST_NUMBERS:
        step += 1
    numbers = pixels[:, ::step, ::step].transpose(1, 2, 0).reshape(-1)
    return np.rint(numbers * 255).astype(np.uint8)
