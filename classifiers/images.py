"""Images: from a file, a PIL image or an array to a classifier's input, or the one line that says what is wrong.

What is accepted, and why:

- An encoded image is a PNG or a JPEG with 8 (PNG: or fewer) bits per channel. Greyscale for an RGB classifier is
  replicated over the channels, which loses nothing; a palette is expanded to RGB. Refused, because every way to make
  them fit would be a guess: colour for a greyscale classifier, alpha, 16 bits, CMYK, animations. EXIF orientation is
  not applied: loaders of training data do not apply it either.
- Another size is refused unless the bundle says `resize = "bilinear"` (antialiased, rounded to 8 bits; the aspect
  ratio is not kept).
- The size in the header is judged before anything is decoded, so that a small file cannot unpack to gigabytes.
- An array is [C, H, W] of exactly the classifier's shape: floats in [0, 1], or uint8, divided by 255. Never resized.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from askance.detectors.preprocessing import Preprocessing
from askance.errors import DataError

FORMATS = ("PNG", "JPEG")
MAX_PIXELS = 16_000_000
"""The largest encoded image, width x height, where nobody says otherwise; a server's own default."""
_IHDR = slice(12, 16)  # where a PNG names its first chunk, and where that holds the bit depth
_DEPTH = 24


class ImageError(DataError):
    """An image is not what a classifier takes.

    Attributes:
        expected, got: the two halves of the line, for whoever knows by which name the image was sent.
    """

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected = expected
        self.got = got


def decode(content: bytes, preprocessing: Preprocessing, max_pixels: int) -> Tensor:
    """Decode a PNG or JPEG file to float32 [C, H, W] in [0, 1].

    Args:
        content: the file.
        preprocessing: the shape wanted, and whether another size is resized.
        max_pixels: the largest width x height.

    Raises:
        ImageError: see the head of this module for what is refused.
    """
    with _opened(content, max_pixels) as image:
        return of_picture(image, preprocessing)


def shape_of(content: bytes, max_pixels: int) -> tuple[int, int, int]:
    """The shape of a PNG or JPEG file's image, (channels, height, width), from its header.

    Raises:
        ImageError: as for `decode`.
    """
    with _opened(content, max_pixels) as image:
        _check_mode(image)
        return 1 if _is_grey(image) else 3, image.height, image.width


@contextmanager
def _opened(content: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """An image whose header is in order, its pixels not yet decoded; whatever decoding raises becomes an ImageError."""
    if not content:
        raise ImageError("a PNG or JPEG image", "0 bytes")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(f"an image of at most {max_pixels} pixels", f"{image.width}x{image.height}")
            if image.format == "PNG":
                _check_png(image, content)
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("a PNG or JPEG image", f"{len(content)} bytes that are neither") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"an image of at most {max_pixels} pixels", "many more") from None
    except Exception as error:  # decoders raise a dozen types on damaged files
        raise ImageError("an intact image", f"one that cannot be decoded ({_one_line(error)})") from None


def of_picture(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """A PIL image as float32 [C, H, W] in [0, 1]; judged by its header before it is decoded.

    Raises:
        ImageError: as for `decode`.
    """
    _check_mode_and_size(image, preprocessing)
    planes = torch.from_numpy(bytes_of(image)).float().div_(255)
    if planes.shape[1:] != (preprocessing.height, preprocessing.width):
        # to 8 bits, as a file of that size would hold: a calibration keeps its images so
        planes = resize(planes, preprocessing.height, preprocessing.width).mul_(255).round_().div_(255)
    return planes.expand(preprocessing.shape).contiguous()


def bytes_of(image: Image.Image) -> NDArray[np.uint8]:
    """A PIL image in its own size and colours, uint8 [1 or 3, H, W].

    Raises:
        ImageError: alpha, more than 8 bits a channel, neither greyscale nor RGB, or damaged.
    """
    _check_mode(image)
    try:
        pixels = np.array(image.convert("L" if _is_grey(image) else "RGB"))
    except Exception as error:  # decoders raise a dozen types on damaged files
        raise ImageError("an intact image", f"one that cannot be decoded ({_one_line(error)})") from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def of_planes(planes: NDArray[Any], preprocessing: Preprocessing) -> Tensor:
    """Pixels of exactly the classifier's shape as float32 [C, H, W] in [0, 1].

    Raises:
        ImageError: another shape, NaN, infinity, or values outside [0, 1].
    """
    if tuple(planes.shape) != preprocessing.shape:
        raise ImageError(f"{list(preprocessing.shape)} (channels, height, width)", str(list(planes.shape)))
    return pixels_of(planes)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Scale an image [C, h, w] in [0, 1] to [C, height, width], bilinear and antialiased."""
    return (
        F.interpolate(image.unsqueeze(0), size=(height, width), mode="bilinear", align_corners=False, antialias=True)
        .squeeze(0)
        .clamp_(0, 1)
    )


def pixels_of(array: NDArray[Any]) -> Tensor:
    """An image's values, uint8 (divided by 255) or floats of any shape, as float32 in [0, 1].

    Raises:
        ImageError: NaN, infinity, or values outside [0, 1].
    """
    values = torch.from_numpy(array.astype(np.float32))
    if array.dtype == np.uint8:
        return values.div_(255)
    inside = (values >= 0) & (values <= 1)  # false for NaN
    if not bool(inside.all()):
        where = [int(i) for i in torch.nonzero(~inside)[0]]
        value = float(values[tuple(where)])
        hint = " (divide pixels 0..255 by 255, or send UINT8)" if math.isfinite(value) and value > 1 else ""
        raise ImageError("finite values in [0, 1]", f"{value:g} at {where}{hint}")
    return values


def _check_png(image: Image.Image, content: bytes) -> None:
    if getattr(image, "is_animated", False):
        raise ImageError("a still image", "an animated PNG")
    if content[_IHDR] != b"IHDR" or content[_DEPTH] > 8:
        raise ImageError("8 bits per channel", f"a PNG of {content[_DEPTH]} bits")


def _check_mode(image: Image.Image) -> None:
    if image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info:
        raise ImageError("an image without alpha (flatten it first)", f"{image.mode} with alpha")
    if image.mode not in ("1", "L", "P", "RGB"):
        raise ImageError("a greyscale or RGB image", f"{image.mode}")


def _check_mode_and_size(image: Image.Image, preprocessing: Preprocessing) -> None:
    _check_mode(image)
    if preprocessing.channels == 1 and not _is_grey(image):
        raise ImageError("a greyscale image (the classifier has 1 channel)", f"colour ({image.mode})")
    size = (preprocessing.width, preprocessing.height)
    if preprocessing.resize == "refuse" and image.size != size:
        raise ImageError(
            f"an image of {size[0]}x{size[1]} pixels (width x height; this bundle does not resize)",
            f"{image.width}x{image.height}",
        )


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L")


def _one_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:120] if lines else type(error).__name__
