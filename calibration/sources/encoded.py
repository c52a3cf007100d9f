"""Encoded images, decoded as a server decodes them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from askance.classifiers.images import MAX_PIXELS, ImageError, decode, shape_of
from askance.detectors.preprocessing import Preprocessing
from askance.errors import DataError, printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


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


def _like(content: bytes) -> Preprocessing:
    """What a classifier would take whose images are all like this one."""
    channels, height, width = shape_of(content, MAX_PIXELS)
    # Not validated: no classifier will take it, so that its limits are none of ours.
    return Preprocessing.model_construct(channels=channels, height=height, width=width, resize="refuse")


def _bytes_of(content: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """An encoded image as uint8 [H, W, C]; decoding leaves 8 bits a channel, so nothing is lost."""
    pixels = decode(content, preprocessing, MAX_PIXELS)
    found: NDArray[np.uint8] = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return found
