"""Image-likes: what a person may hand over as an image, and where its channels stand. Light: numpy alone."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from askance.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    ImageLike = bytes | str | PathLike[str] | Image | NDArray[Any] | Tensor
    """A PNG, JPEG or WebP file's content or path, a PIL image, or pixels as numpy or torch has them: uint8, or floats
    in [0, 1], [C, H, W], [H, W, C] or, greyscale, [H, W]."""
    Batch = NDArray[np.float32] | Tensor
    """Images as numpy or torch has them, [B, C, H, W], float32 in [0, 1]."""
else:
    ImageLike = Batch = Any

CHANNELS = (1, 3)


def planes_of(pixels: Any) -> NDArray[Any]:
    """One image's pixels, numpy or torch, as [C, H, W].

    The channels are where 1 or 3 stands, first or else last; an array of two dimensions is greyscale.

    Raises:
        DataError: the values are neither uint8 nor floating-point, or the shape is not an image's.
    """
    array = array_of(pixels)
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"pixels: expected uint8 or floating-point values, got {array.dtype}")
    if array.ndim == 2:
        return array[None]
    if array.ndim == 3 and array.shape[0] in CHANNELS:
        return array
    if array.ndim == 3 and array.shape[2] in CHANNELS:
        return array.transpose(2, 0, 1)
    raise DataError(
        "pixels: expected [channels, height, width] or [height, width, channels], with 1 or 3 channels, "
        f"got shape {list(array.shape)}"
    )


def array_of(pixels: Any) -> NDArray[Any]:
    """A numpy array or torch tensor, on whatever device, as a numpy array."""
    if hasattr(pixels, "detach"):
        pixels = pixels.detach().cpu().numpy()
    return np.asarray(pixels)


def is_picture(image: Any) -> bool:
    """Whether it is a PIL image; told without importing PIL."""
    return hasattr(image, "getbands") and hasattr(image, "save")


def is_single(images: Any) -> bool:
    """Whether this is one image rather than several of them."""
    if isinstance(images, (bytes, str, PathLike)) or is_picture(images):
        return True
    return hasattr(images, "ndim") and images.ndim <= 3
