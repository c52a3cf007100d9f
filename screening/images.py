"""Images: from a file, a PIL image or an array to a classifier's input, or the one line that says what is wrong.

What is accepted, and why:

- An encoded image is a PNG, a JPEG or a WebP with 8 (PNG: or fewer) bits per channel. Greyscale for an RGB classifier
  is replicated over the channels, which loses nothing; a palette is expanded to RGB. Refused, because every way to make
  them fit would be a guess: colour for a greyscale classifier, alpha, 16 bits, CMYK, animations. EXIF orientation is
  not applied: loaders of training data do not apply it either.
- A WebP is always in colour. A greyscale classifier takes one whose channels are the same, give or take the step that
  decoding a greyscale picture sets green apart by.
- Another size is refused unless the bundle says `resize = "bilinear"` (antialiased, rounded to 8 bits; the aspect
  ratio is not kept).
- The size in the header is judged before anything is decoded, so that a small file cannot unpack to gigabytes.
- An array is [C, H, W] of exactly the classifier's shape: floats in [0, 1], or uint8, divided by 255. Never resized.
- Floats outside [0, 1] by no more than ROUNDING are what arithmetic leaves of 0 and 1, and are taken for them. What
  lies further out is a mistake that only the sender can mend: pixels from 0 to 255, normalised ones, or a bicubic
  resize that nobody clipped.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from askance.errors import DataError
from askance.screening import webp
from askance.screening.preprocessing import Preprocessing

Pixels = NDArray[np.float32]
"""Of an image, [C, H, W] in [0, 1]."""
FORMATS = ("PNG", "JPEG", "WEBP")
FILES = "a PNG, JPEG or WebP image"
ROUNDING = 2.0**-10
"""How far rounding takes a pixel out of [0, 1]: a step of float16 above 1, and a quarter of one of 8 bits. Float32 errs
by far less, in a resize by the length of its kernel times 2^-24."""
MAX_PIXELS = 16_000_000
"""The largest encoded image, width x height, where nobody says otherwise; a server's own default."""
_MOST_OVERSHOT = 0.3
"""What sharp kernels do overshoot by, beside edges: a hint's threshold and nothing more."""
GREY = "a greyscale image (the classifier has 1 channel)"
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


def decode(content: bytes, preprocessing: Preprocessing, max_pixels: int) -> Pixels:
    """Decode a PNG, JPEG or WebP file to float32 [C, H, W] in [0, 1].

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
    """The shape of an image file's image, (channels, height, width), from its header.

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
        raise ImageError(FILES, "0 bytes")
    try:
        if webp.is_webp(content):
            _check_webp(content, max_pixels)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_pixels(image.width, image.height, max_pixels)
            if image.format == "PNG":
                _check_png(image, content)
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(FILES, f"{len(content)} bytes that are none") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"an image of at most {max_pixels} pixels", "many more") from None
    except Exception as error:  # decoders raise a dozen types on damaged files
        raise ImageError("an intact image", f"one that cannot be decoded ({_one_line(error)})") from None


def of_picture(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """A PIL image as float32 [C, H, W] in [0, 1]; judged by its header before it is decoded.

    Raises:
        ImageError: as for `decode`.
    """
    _check_mode_and_size(image, preprocessing)
    own = bytes_of(image)
    if preprocessing.channels == 1 and len(own) > 1:
        own = _grey(own)
    if own.shape[1:] != (preprocessing.height, preprocessing.width):
        # to 8 bits, as a file of that size would hold: a calibration keeps its images so
        own = resize(own, preprocessing.height, preprocessing.width).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(own.astype(np.float32) / 255, preprocessing.shape))


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


def of_planes(planes: NDArray[Any], preprocessing: Preprocessing) -> Pixels:
    """Pixels of exactly the classifier's shape as float32 [C, H, W] in [0, 1].

    Raises:
        ImageError: another shape, NaN, infinity, or values outside [0, 1].
    """
    if tuple(planes.shape) != preprocessing.shape:
        raise ImageError(f"{list(preprocessing.shape)} (channels, height, width)", str(list(planes.shape)))
    return pixels_of(planes)


def resize(planes: NDArray[np.uint8], height: int, width: int) -> Pixels:
    """Scale an image [C, h, w] to float32 [C, height, width] in [0, 255], bilinear and antialiased."""
    scaled = [
        Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR) for plane in planes
    ]
    resized: Pixels = np.stack([np.asarray(one) for one in scaled]).clip(0, 255)
    return resized


def pixels_of(array: NDArray[Any]) -> Pixels:
    """An image's values, uint8 (divided by 255) or floats of any shape, as float32 in [0, 1].

    Raises:
        ImageError: NaN, infinity, or values outside [0, 1] by more than ROUNDING.
    """
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    values = array.astype(np.float32)
    if (where := _outside(values)) is not None:
        value = float(values[where])
        raise ImageError("finite values in [0, 1]", f"{value:g} at {list(where)}{_hint(value)}")
    return values.clip(0, 1, out=values)


def of_normalised(planes: NDArray[Any], preprocessing: Preprocessing) -> Pixels:
    """The pixels that a client has normalised itself, floats [C, H, W], as float32 [C, H, W] in [0, 1].

    Raises:
        ImageError: NaN, infinity, or what would be a pixel outside [0, 1] by more than ROUNDING.
    """
    values = preprocessing.denormalize(planes.astype(np.float64))
    if (where := _outside(values)) is not None:
        mean, std = list(preprocessing.mean), list(preprocessing.std)
        pixel = f", which would be the pixel {float(values[where]):g}" if math.isfinite(planes[where]) else ""
        raise ImageError(
            f"pixels in [0, 1] normalised by mean {mean} and std {std}", f"{planes[where]:g} at {list(where)}{pixel}"
        )
    return values.clip(0, 1).astype(np.float32)


def _outside(values: NDArray[np.floating[Any]]) -> tuple[int, ...] | None:
    """Where the first value is that is no pixel, not even one that rounding took out of [0, 1]; None if all are."""
    inside = (values >= -ROUNDING) & (values <= 1 + ROUNDING)  # false for NaN
    return None if bool(inside.all()) else tuple(int(i) for i in np.argwhere(~inside)[0])


def _hint(value: float) -> str:
    """What may have come of a value that is no pixel."""
    if not math.isfinite(value):
        return ""
    if -_MOST_OVERSHOT <= value <= 1 + _MOST_OVERSHOT:
        return f" (clip what a resize overshoots: rounding explains no more than {ROUNDING:.4f})"
    return " (divide pixels 0..255 by 255, or send UINT8)" if value > 1 else ""


def _check_pixels(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise ImageError(f"an image of at most {most} pixels", f"{width}x{height}")


def _check_webp(content: bytes, max_pixels: int) -> None:
    header = webp.header_of(content)
    if header is None:
        raise ImageError("an intact image", "one that cannot be decoded (its header is no WebP's)")
    if header.is_animated:
        raise ImageError("a still image", "an animated WebP")
    _check_pixels(header.width, header.height, max_pixels)


def _grey(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture of a format that knows colours only, [3, H, W], as [1, H, W], if it is grey.

    Green is what a luma of all three comes to where it is the one that is a step off.
    """
    if bool((planes.max(axis=0) - planes.min(axis=0) > 1).any()):
        raise ImageError(GREY, "colour (RGB)")
    return planes[1:2]


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
    if preprocessing.channels == 1 and not _is_grey(image) and image.format != "WEBP":
        raise ImageError(GREY, f"colour ({image.mode})")
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
