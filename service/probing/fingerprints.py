"""Fingerprints: hashes by which an image that is nearly the same as one of late is found.

Source: H. Li et al., "Blacklight: scalable defense for neural networks against query-based black-box attacks" (2022):
hashes of quantised segments, of which the greatest are kept. In place of SHA-256 the hash is R. Karp and M. Rabin's
(1987), modulo 2^64, which takes a few operations a segment; its base is drawn anew by each process, so that nobody
knows which segments count.
"""

from __future__ import annotations

import secrets

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Hashes = NDArray[np.uint64]

LEVEL = 50  # of 255: a smaller change is mostly none (the paper's quantisation step)
WINDOW = 20  # numbers of a segment (the paper's, of small images)
KEPT, MOST_SORTED = 24, 80  # hashes of an image (the paper keeps 50), and those that they are chosen among
MOST_NUMBERS = 4096  # of an image: of larger ones each n-th pixel
MODULUS = 2**64
MIXER = np.uint64(0x9E3779B97F4A7C15)
HALF = np.uint64(32)


class Fingerprints:
    """Hashes images of one shape with a key of its own.

    Args:
        numbers: of an image.
    """

    def __init__(self, numbers: int) -> None:
        base, self._numbers = secrets.randbits(64) | 1, max(numbers, WINDOW)
        self._powers = _powers(base, self._numbers)
        self._unpowers = _powers(pow(base, -1, MODULUS), self._numbers - WINDOW + 1)

    def of(self, numbers: Bytes) -> Hashes:
        """At most KEPT different hashes, sorted; of segments that are not of one level, where there are any: black
        ones are in every image of a digit.

        Args:
            numbers: of an image, uint8 [D].
        """
        levels = numbers // np.uint8(LEVEL)
        if len(levels) < self._numbers:
            levels = np.pad(levels, (0, self._numbers - len(levels)))
        sums = np.cumsum(levels * self._powers)  # modulo 2^64, as what follows
        hashes = sums[WINDOW - 1 :].copy()
        hashes[1:] -= sums[:-WINDOW]
        hashes *= self._unpowers
        changes = np.cumsum(levels[1:] != levels[:-1])
        varied = changes[WINDOW - 2 :].copy()
        varied[1:] -= changes[: 1 - WINDOW]
        if varied.any():
            hashes = hashes[varied > 0]
        hashes = (hashes ^ (hashes >> HALF)) * MIXER  # which are the greatest must not depend on what is bright
        hashes ^= hashes >> HALF
        if len(hashes) > MOST_SORTED:  # the greatest, with a few that are there twice
            hashes = np.partition(hashes, -MOST_SORTED)[-MOST_SORTED:]
        return np.unique(hashes)[-KEPT:]


def _powers(base: int, count: int) -> Hashes:
    found, power = [], 1
    for _ in range(count):
        found.append(power)
        power = power * base % MODULUS
    return np.array(found, dtype=np.uint64)


def thinned(image: Bytes) -> Bytes:
    """The numbers of an image [C, H, W] by pixel, uint8 [D]; of a large one those of each n-th row and column."""
    step = 1
    while image[:, ::step, ::step].size > MOST_NUMBERS:
        step += 1
    return image[:, ::step, ::step].transpose(1, 2, 0).reshape(-1)
