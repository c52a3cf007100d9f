"""Techniques: what an attack's questions have to do with one another, told from the last of a family.

That the way from one question to the next gives an attack away is J. Park et al.'s, "Mind the gap: detecting black-box
adversarial attacks in the making through query update analysis" (CVPR 2025). Whose questions look how: HopSkipJump (J.
Chen et al. 2020) halves the way between two images again and again; NES (A. Ilyas et al. 2018) asks in pairs on either
side of an image; Square (M. Andriushchenko et al. 2020) changes one square at a time; all that go by decisions alone
(W. Brendel et al. 2018) walk where the answer turns as often as not.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from askance.service.probing.fingerprints import Bytes

HALVINGS = 2  # in a row
SHORTEST, BACK = 0.25, -0.8  # of a step: its root mean square, of 255; and its cosine with the one it turns back from
HALVED = (0.35, 0.68)  # of the step before, the length of one that halves it; at the end 8 bits a pixel are coarse
OPPOSITE, ASIDE = -0.7, 0.4  # cosines: of a pair about its middle, and of what is no pair
ALIKE = 0.8  # of a pair's lengths, the shorter one's share of the longer
ABOUT = (8, 12, 24, 48)  # last images that may be about the same middle
INSIDE = (8, 247)  # of 255: a number whose both sides are seen
FEWEST_INSIDE = 32  # numbers of them
COMPARED_NUMBERS = 512  # of an image, about, for pairs
LOCAL = 0.5  # of an image's numbers that a square changes, at most
LEAST = 3  # of 255, that a square changes a number by: less is a camera's noise
OF_TWO_KINDS = 0.7  # of the changed numbers, those that change by one of two amounts


class Technique(StrEnum):
    """What gives a client away.

    BISECTION: its questions halve the way between two images.
    PAIRS: they come in pairs on either side of an image.
    SQUARES: each changes a part of an image by one amount, and the next another part.
    BOUNDARY: between images that are nearly the same the answer turns as often as not.
    UNUSUAL: image after image, each another one, is judged ADVERSARIAL.
    """

    BISECTION = "bisection"
    PAIRS = "pairs"
    SQUARES = "squares"
    BOUNDARY = "boundary"
    UNUSUAL = "unusual"


def bisects(images: Bytes) -> bool:
    """Whether each of the last steps is about half as long as the one before it, and one turns back.

    A camera whose exposure settles does not turn back, and noise by itself only half (its cosine is -.5).

    Args:
        images: of a family, uint8 [N, D], the latest last.
    """
    if len(images) < HALVINGS + 2:
        return False
    steps = np.diff(images[-HALVINGS - 2 :].astype(np.float32), axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    shares = lengths[1:] / lengths[:-1]  # no two images in a row are the same
    if lengths[-1] < SHORTEST * images.shape[1] ** 0.5 or shares.min() < HALVED[0] or shares.max() > HALVED[1]:
        return False
    cosines = (steps[1:] * steps[:-1]).sum(axis=1) / (lengths[1:] * lengths[:-1])
    return bool(cosines.min() < BACK)


def pairs(images: Bytes) -> bool:
    """Whether the last image lies opposite to one other about the middle of some, and to no more.

    Two views in turn, or a light that flickers, are opposite to many.

    Args:
        images: as for `bisects`.
    """
    numbers = images[-ABOUT[-1] :, :: -(-images.shape[1] // COMPARED_NUMBERS)].astype(np.float32)
    middle = numbers.mean(axis=0)
    seen = (middle > INSIDE[0]) & (middle < INSIDE[1])
    if np.count_nonzero(seen) < FEWEST_INSIDE:
        return False
    sides = (numbers - middle)[:, seen]
    products = sides @ sides.T
    counts = {count for count in (*ABOUT, len(products)) if ABOUT[0] <= count <= len(products)}
    return any(_stands_opposite(products[-count:, -count:]) for count in counts)


def _stands_opposite(products: NDArray[np.float32]) -> bool:
    """The same, from the scalar products [N, N] of images, the latest last."""
    means = products.mean(axis=1)
    centred = products[-1] - means[-1] - means + means.mean()  # of what they are apart from their middle
    lengths = np.sqrt(np.maximum(products.diagonal() - 2 * means + means.mean(), 1e-6))
    cosines = centred[:-1] / (lengths[:-1] * lengths[-1])
    nearest = int(cosines.argmin())
    if cosines[nearest] > OPPOSITE or not ALIKE < lengths[nearest] / lengths[-1] < 1 / ALIKE:
        return False
    return bool(np.count_nonzero(np.abs(cosines) > ASIDE) == 1)


def square(images: Bytes) -> NDArray[np.bool_] | None:
    """The numbers that the last image changes of the one before it that is nearest, if these are a part that changes by
    at most two amounts; else None.

    Args:
        images: as for `bisects`.
    """
    if len(images) < 2:
        return None
    changes = images[:-1].astype(np.int16) - images[-1]
    nearest = np.abs(changes[(changes != 0).sum(axis=1).argmin()])
    changed: NDArray[np.bool_] = nearest != 0
    if not 0 < changed.mean() <= LOCAL:
        return None
    amounts = np.bincount(nearest[changed], minlength=LEAST + 2)
    of_one = amounts[:-1] + amounts[1:]  # rounded either way
    most = int(of_one[LEAST:].argmax()) + LEAST
    others = of_one.copy()
    others[most - 1 : most + 2] = 0
    if of_one[most] < others.max() or of_one[most] + others.max() < OF_TWO_KINDS * changed.sum():
        return None
    return changed
