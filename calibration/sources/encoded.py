"""Encoded images, decoded as a server decodes them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from askance.calibration.progress import say
from askance.calibration.sources.source import Pools, Source
from askance.errors import DataError, listed, printable
from askance.screening.images import MAX_PIXELS, ImageError, decode, shape_of
from askance.screening.preprocessing import Preprocessing

MOST_CLASSES = 1_000_000
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class EncodedSource(Source):
    """A source of encoded images, by a path: they are decoded to what the classifier takes, where that is known."""

    is_path: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def read(cls, what: str, preprocessing: Preprocessing | None) -> Pools:
        """Load what stands after the colon.

        Args:
            what: that.
            preprocessing: what the classifier takes; None: what the first image is, in size and colours.

        Raises:
            DataError: it is missing or invalid, or a server would refuse one of the images.
        """

    @classmethod
    def load(cls, what: str) -> Pools:
        """All images, in the size and colours of the first."""
        return cls.read(what, None)

    @classmethod
    def load_for(cls, what: str, preprocessing: Preprocessing) -> Pools:
        """All images, as this classifier's server would take them."""
        return cls.read(what, preprocessing)


def decoded(
    source: str, images: Iterable[tuple[str, bytes]], preprocessing: Preprocessing | None
) -> list[NDArray[np.uint8]]:
    """Images as uint8 [H, W, C].

    Args:
        source: as a config spells it, for errors.
        images: (name, content), PNG, JPEG or WebP.
        preprocessing: what the classifier takes; None: what the first of them is.

    Raises:
        DataError: a server would refuse one of them.
    """
    found = []
    for name, content in images:
        try:
            preprocessing = preprocessing or _like(content)
            found.append(_bytes_of(content, preprocessing))
        except ImageError as error:
            raise DataError(
                f"{source}: {printable(name)}: {error}; a server refuses such an image, too: convert it, or take it out"
            ) from None
    return found


def say_left_out(source: str, read: int, names: Sequence[str], rule: str) -> None:
    """Say which entries of a source were left out, if any, and by what rule the others are images."""
    if names:
        told = listed([printable(name) for name in names])
        say(f"{source}: {read} images read, {len(names)} other entries left out ({told}): only {rule}")


def numbered(labels: Sequence[int], source: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels of classes that have numbers for names: the labels, int64 [N], and the names, up to the greatest.

    Raises:
        DataError: there are more classes than any classifier has; their names would fill the memory.
    """
    if (greatest := max(labels)) >= MOST_CLASSES:
        raise DataError(f"{source}: label {greatest} is out of range: expected less than {MOST_CLASSES}")
    return np.array(labels, np.int64), tuple(map(str, range(greatest + 1)))


def _like(content: bytes) -> Preprocessing:
    """What a classifier would take whose images are all like this one."""
    channels, height, width = shape_of(content, MAX_PIXELS)
    # Not validated: no classifier will take it, so that its limits are none of ours.
    return Preprocessing.model_construct(channels=channels, height=height, width=width, resize="refuse")


def _bytes_of(content: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """An encoded image as uint8 [H, W, C]; decoding leaves 8 bits a channel, so nothing is lost."""
    pixels = decode(content, preprocessing, MAX_PIXELS)
    found: NDArray[np.uint8] = (pixels * 255).round().astype(np.uint8).transpose(1, 2, 0)
    return found
