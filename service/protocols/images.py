"""Images: from what a client sent to the classifier's input, or the one line that says what is wrong with it.

What is accepted, and why:

- An encoded image is a PNG or a JPEG with 8 (PNG: or fewer) bits per channel. Greyscale for an RGB classifier is
  replicated over the channels, which loses nothing; a palette is expanded to RGB. Refused, because every way to make
  them fit would be a guess: colour for a greyscale classifier, alpha, 16 bits, CMYK, animations. EXIF orientation is
  not applied: loaders of training data do not apply it either.
- Another size is refused unless the bundle says `resize = "bilinear"` (antialiased; the aspect ratio is not kept).
- The size in the header is judged before anything is decoded, so that a small file cannot unpack to gigabytes.
- A tensor is [C, H, W] of exactly the classifier's shape: FP32 in [0, 1], or UINT8, divided by 255. Never resized.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from askance.detectors.preprocessing import Preprocessing
from askance.service.pb.askance.v1 import screening_pb2
from askance.service.errors import StatusError, invalid

FORMATS = ("PNG", "JPEG")
_DTYPES: Mapping[int, np.dtype[Any]] = {
    screening_pb2.Tensor.FP32: np.dtype("<f4"),
    screening_pb2.Tensor.UINT8: np.dtype("u1"),
}
_IHDR = slice(12, 16)  # where a PNG names its first chunk, and where that holds the bit depth
_DEPTH = 24


def image_of(request: screening_pb2.ScreenRequest, preprocessing: Preprocessing, max_pixels: int) -> Tensor:
    """The image of a request, float32 [C, H, W] in [0, 1].

    Raises:
        StatusError: INVALID_ARGUMENT, in one line: the field, what was expected, what came.
    """
    kind = request.WhichOneof("image")
    if kind == "encoded":
        return decode(request.encoded, preprocessing, max_pixels)
    if kind == "tensor":
        return from_tensor(request.tensor, preprocessing)
    raise invalid("image", "encoded or tensor", "neither")


def decode(content: bytes, preprocessing: Preprocessing, max_pixels: int) -> Tensor:
    """Decode a PNG or JPEG file to float32 [C, H, W] in [0, 1].

    Args:
        content: the file.
        preprocessing: the shape wanted, and whether another size is resized.
        max_pixels: the largest width x height.

    Raises:
        StatusError: INVALID_ARGUMENT; see the head of this module for what is refused.
    """
    if not content:
        raise invalid("encoded", "a PNG or JPEG image", "0 bytes")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_header(image, content, preprocessing, max_pixels)
            image.load()
            pixels = np.array(image.convert("L" if _is_grey(image) else "RGB"))
    except StatusError:
        raise
    except UnidentifiedImageError:
        raise invalid("encoded", "a PNG or JPEG image", f"{len(content)} bytes that are neither") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise invalid("encoded", f"an image of at most {max_pixels} pixels", "many more") from None
    except Exception as error:  # decoders raise a dozen types on damaged files
        raise invalid("encoded", "an intact image", f"one that cannot be decoded ({_one_line(error)})") from None
    image_tensor = torch.from_numpy(pixels).float().div_(255)
    planes = image_tensor.unsqueeze(0) if pixels.ndim == 2 else image_tensor.permute(2, 0, 1)
    if planes.shape[1:] != (preprocessing.height, preprocessing.width):
        planes = resize(planes, preprocessing.height, preprocessing.width)
    return planes.expand(preprocessing.shape).contiguous()


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Scale an image [C, h, w] in [0, 1] to [C, height, width], bilinear and antialiased."""
    return (
        F.interpolate(image.unsqueeze(0), size=(height, width), mode="bilinear", align_corners=False, antialias=True)
        .squeeze(0)
        .clamp_(0, 1)
    )


def from_tensor(tensor: screening_pb2.Tensor, preprocessing: Preprocessing) -> Tensor:
    """Read a request's tensor, float32 [C, H, W] in [0, 1].

    Raises:
        StatusError: INVALID_ARGUMENT for another shape, type or byte count, NaN, infinity, or values outside [0, 1].
    """
    shape = preprocessing.shape
    if tuple(tensor.shape) != shape:
        raise invalid("tensor.shape", f"{list(shape)} (channels, height, width)", _shown(tensor.shape))
    if tensor.dtype not in _DTYPES:
        names = screening_pb2.Tensor.DataType
        known = tensor.dtype in names.values()
        raise invalid("tensor.dtype", "FP32 or UINT8", names.Name(tensor.dtype) if known else str(tensor.dtype))
    dtype = _DTYPES[tensor.dtype]
    size = math.prod(shape) * dtype.itemsize
    if len(tensor.data) != size:
        name = screening_pb2.Tensor.DataType.Name(tensor.dtype)
        raise invalid("tensor.data", f"{size} bytes ({'x'.join(map(str, shape))} {name})", f"{len(tensor.data)}")
    return pixels_of(np.frombuffer(tensor.data, dtype).reshape(shape), "tensor.data")


def pixels_of(array: NDArray[Any], field: str) -> Tensor:
    """An image's values, uint8 or float32 of any shape, as float32 in [0, 1].

    Args:
        array: uint8 is divided by 255.
        field: of the request, for the error.

    Raises:
        StatusError: INVALID_ARGUMENT for NaN, infinity, or values outside [0, 1].
    """
    values = torch.from_numpy(array.astype(np.float32))
    if array.dtype == np.uint8:
        return values.div_(255)
    inside = (values >= 0) & (values <= 1)  # false for NaN
    if not bool(inside.all()):
        where = [int(i) for i in torch.nonzero(~inside)[0]]
        value = float(values[tuple(where)])
        hint = " (divide pixels 0..255 by 255, or send UINT8)" if math.isfinite(value) and value > 1 else ""
        raise invalid(field, "finite values in [0, 1]", f"{value:g} at {where}{hint}")
    return values


def _check_header(image: Image.Image, content: bytes, preprocessing: Preprocessing, max_pixels: int) -> None:
    """Refuse what the header alone shows to be unfit."""
    if image.width * image.height > max_pixels:
        raise invalid("encoded", f"an image of at most {max_pixels} pixels", f"{image.width}x{image.height}")
    if image.format == "PNG":
        if getattr(image, "is_animated", False):
            raise invalid("encoded", "a still image", "an animated PNG")
        if content[_IHDR] != b"IHDR" or content[_DEPTH] > 8:
            raise invalid("encoded", "8 bits per channel", f"a PNG of {content[_DEPTH]} bits")
    if image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info:
        raise invalid("encoded", "an image without alpha (flatten it first)", f"{image.mode} with alpha")
    if image.mode not in ("1", "L", "P", "RGB"):
        raise invalid("encoded", "a greyscale or RGB image", f"{image.mode}")
    if preprocessing.channels == 1 and not _is_grey(image):
        raise invalid("encoded", "a greyscale image (the classifier has 1 channel)", f"colour ({image.mode})")
    size = (preprocessing.width, preprocessing.height)
    if preprocessing.resize == "refuse" and image.size != size:
        raise invalid(
            "encoded",
            f"an image of {size[0]}x{size[1]} pixels (width x height; this bundle does not resize)",
            f"{image.width}x{image.height}",
        )


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L")


def _shown(shape: Sequence[int]) -> str:
    return str(list(shape)) if len(shape) <= 8 else f"{len(shape)} dimensions"


def _one_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:120] if lines else type(error).__name__
