"""Techniques: what an attack's questions have to do with one another, told from the last of a family.

That the way from one question to the next gives an attack away is J. Park et al.'s, "Mind the gap: detecting black-box
adversarial attacks in the making through query update analysis" (CVPR 2025). Whose questions look how: HopSkipJump (J.
Chen et al. 2020) halves the way between two images again and again; NES (A. Ilyas et al. 2018) asks in pairs on either
side of an image; Square (M. Andriushchenko et al. 2020) changes one square at a time; all that go by decisions alone
(W. Brendel et al. 2018) walk where the answer turns as often as not.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from askance.service.probing.fingerprints import Bytes

HALVINGS = 3  # in a row
SHORTEST = 1.0  # of the steps: its root mean square, of 255
RESIDUES = (0.7, 0.5)  # of 255, root mean square: what a step that goes on, or turns back, may differ by from half of
# the one before; rounding takes .54 and .35
OPPOSITE, ASIDE = -0.85, 0.7  # cosines: of a pair about its middle, and of what is no pair
ALIKE = 0.8  # of a pair's lengths, the shorter one's share of the longer
ABOUT = (12, 48)  # last images that may be about the same middle
INSIDE = (8, 247)  # of 255: a number whose both sides are seen
FEWEST_INSIDE = 16  # numbers of them
TINY = 1e-6
COMPARED_NUMBERS = 256  # of an image, about, for pairs
LOCAL = 0.5  # of an image's numbers that a square changes, at most
LEAST = 3  # of 255, that a square changes a number by: less is noise, or light
FAINT = 0.05  # of the changed numbers, those that change by less, at most
TAKEN_BACK = 16  # last images, of which one is changed
OF_TWO_KINDS = 0.8  # of the changed numbers, those that change by one of two amounts


class Technique(StrEnum):
    """What gives a client away.

    BISECTION: its questions halve the way between two images, and are then about where the answer turns.
    PAIRS: they come in pairs on either side of an image.
    SQUARES: each changes a part of an image by one amount, and the next another part.
    ALIKE: more of them are nearly the same than any honest client's would be.
    UNUSUAL: image after image, each another one, is judged ADVERSARIAL.
    """

    BISECTION = "bisection"
    PAIRS = "pairs"
    SQUARES = "squares"
    ALIKE = "alike"
    UNUSUAL = "unusual"


class Sign(StrEnum):
    """What an image of a family may show, after those before it.

    HALVED: it ends a way that was halved to and fro.
    TURNED: the answer is another than the last one's; looked for after such a way alone, for a camera may well look at
        what the classifier is not sure of.
    PAIRED: it lies opposite to another one.
    ELSEWHERE: it changes another part than the last one.
    FLAGGED: it is judged ADVERSARIAL; looked for in the first image of a family alone, the others are as usual as it.
    """

    HALVED = "halved"
    TURNED = "turned"
    PAIRED = "paired"
    ELSEWHERE = "elsewhere"
    FLAGGED = "flagged"


class Halvings:
    """Follows the steps from one image of a family to the next, for ways that are halved.

    Each step of a bisection is half the one before it, and goes the way that the last answer sends it: on, or back. A
    light that settles, hunts or flickers turns where no answer does, and with a camera's noise no step is half of
    another to the last bit.
    """

    def __init__(self) -> None:
        self._way = 1
        self._run: list[tuple[Hashable, int]] = []

    def see(self, images: Bytes, sent_by: Hashable) -> bool:
        """Whether the last image ends a way that was halved to and fro, for the first time.

        Args:
            images: of a family, uint8 [N, D], the latest last; another one at each call.
            sent_by: the answer to the one before it.
        """
        if len(images) < 3:
            return False
        before, step = np.subtract(images[-2:], images[-3:-1], dtype=np.float32)
        turns = _halves(step, before)
        if turns is None:
            self._run = []
            return False
        was_one = _is_bisection(self._run)
        self._way = -self._way if turns else self._way
        self._run.append((sent_by, self._way))
        return _is_bisection(self._run) and not was_one


def _halves(step: NDArray[np.float32], before: NDArray[np.float32]) -> bool | None:
    """Whether a step that is half of the one before it turns back; None where it is not half of it."""
    square_length, product = float(step @ step), float(step @ before)
    if square_length < SHORTEST**2 * len(step):
        return None
    residue = square_length - abs(product) + float(before @ before) / 4
    turns = product < 0
    return turns if residue < RESIDUES[turns] ** 2 * len(step) else None


def _is_bisection(run: Sequence[tuple[Hashable, int]]) -> bool:
    """Whether steps went both ways, and each way by answers of its own."""
    ways = dict(run)
    return len(run) >= HALVINGS and len(set(ways.values())) > 1 and all(ways[answer] == way for answer, way in run)


def pairs(images: Bytes) -> bool:
    """Whether the last image lies opposite to one other about the middle of some, and to no more.

    Two views in turn, or a light that flickers, are opposite to many.

    Args:
        images: of a family, uint8 [N, D], the latest last.
    """
    if len(images) < ABOUT[0]:
        return False
    numbers = images[-ABOUT[-1] :, :: -(-images.shape[1] // COMPARED_NUMBERS)].astype(np.float32)
    middle = np.add.reduce(numbers) / np.float32(len(numbers))
    seen = (middle > INSIDE[0]) & (middle < INSIDE[1])
    if np.count_nonzero(seen) < FEWEST_INSIDE:
        return False
    numbers *= seen
    return any(_stands_opposite(numbers[-count:]) for count in {ABOUT[0], len(numbers)})


def _stands_opposite(numbers: NDArray[np.float32]) -> bool:
    """The same, of some images [N, D]."""
    sides = numbers - np.add.reduce(numbers) / np.float32(len(numbers))
    lengths = np.sqrt(np.einsum("nd,nd->n", sides, sides) + TINY)
    cosines = sides[:-1] @ sides[-1] / (lengths[:-1] * lengths[-1])
    nearest = int(cosines.argmin())
    if cosines[nearest] > OPPOSITE or not ALIKE < lengths[nearest] / lengths[-1] < 1 / ALIKE:
        return False
    return bool(np.count_nonzero(np.abs(cosines) > ASIDE) == 1)


def square(images: Bytes, differing: NDArray[np.intp]) -> NDArray[np.bool_] | None:
    """The numbers that the last image changes of the one before it that is nearest, if these are a part that changes by
    at most two amounts, and if that one is not the last before it: who draws, or moves, takes nothing back. Else None.

    Args:
        images: of a family, uint8 [N, D], the latest last.
        differing: how many numbers of those before it are others in the last.
    """
    counts = differing[-TAKEN_BACK:]
    nearest = int(counts.argmin())
    if nearest == len(counts) - 1 or counts[nearest] > LOCAL * images.shape[1]:
        return None
    before = images[-1 - len(counts) : -1]
    changes = np.abs(before[nearest].astype(np.int16) - images[-1])
    changed: NDArray[np.bool_] = changes != 0
    amounts = np.bincount(changes[changed], minlength=LEAST + 2)
    if amounts[:LEAST].sum() > FAINT * counts[nearest]:
        return None
    of_one = amounts[:-1] + amounts[1:]  # rounded either way
    most = int(of_one[LEAST:].argmax()) + LEAST
    others = of_one.copy()
    others[most - 1 : most + 2] = 0
    if of_one[most] < others.max() or of_one[most] + others.max() < OF_TWO_KINDS * counts[nearest]:
        return None
    return changed
