"""Images on the wire: a request's image as the classifier takes it, or INVALID_ARGUMENT with the field it came in.

What is accepted, and why: `askance.screening.images`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from askance.screening import images
from askance.screening.images import ImageError, Pixels
from askance.screening.preprocessing import Preprocessing
from askance.service.errors import invalid
from askance.service.pb.askance.v1 import screening_pb2
from askance.service.runtime.screener import SMALL_BYTES, InputImage

MOST_DIMENSIONS = 1000  # of a shape that are looked at
_DTYPES: Mapping[int, np.dtype[Any]] = {
    screening_pb2.Tensor.FP32: np.dtype("<f4"),
    screening_pb2.Tensor.UINT8: np.dtype("u1"),
}


def image_of(request: screening_pb2.ScreenRequest) -> InputImage:
    """The image of a request; what is wrong with it is said when it is read."""
    kind = request.WhichOneof("image")
    if kind == "encoded":
        return InputImage(partial(decode, request.encoded), False, request.encoded)
    if kind == "tensor":
        sent = request.tensor
        data, shape = sent.data, tuple(sent.shape[: MOST_DIMENSIONS + 1])
        return InputImage(partial(_from_tensor, data, shape, sent.dtype), len(data) <= SMALL_BYTES)
    return InputImage(_neither, is_small=True)


def _neither(_preprocessing: Preprocessing, _max_pixels: int) -> Pixels:
    raise invalid("image", "encoded or tensor", "neither")


def decode(content: bytes, preprocessing: Preprocessing, max_pixels: int, field: str = "encoded") -> Pixels:
    """Decode a PNG, JPEG or WebP file to float32 [C, H, W] in [0, 1].

    Args:
        content: the file.
        preprocessing: the shape wanted, and whether another size is resized.
        max_pixels: the largest width x height.
        field: of the request, for the error.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    try:
        return images.decode(content, preprocessing, max_pixels)
    except ImageError as error:
        raise invalid(field, error.expected, error.got) from None


def _from_tensor(
    data: bytes, sent_shape: tuple[int, ...], dtype: int, preprocessing: Preprocessing, _max_pixels: int
) -> Pixels:
    """Read a request's tensor, float32 [C, H, W] in [0, 1].

    Raises:
        StatusError: INVALID_ARGUMENT for another shape, type or byte count, NaN, infinity, or values outside [0, 1].
    """
    shape = preprocessing.shape
    if sent_shape != shape:
        raise invalid("tensor.shape", f"{list(shape)} (channels, height, width)", shown_shape(sent_shape))
    names = screening_pb2.Tensor.DataType
    if dtype not in _DTYPES:
        raise invalid("tensor.dtype", "FP32 or UINT8", names.Name(dtype) if dtype in names.values() else str(dtype))
    size = math.prod(shape) * _DTYPES[dtype].itemsize
    if len(data) != size:
        what = f"{'x'.join(map(str, shape))} {names.Name(dtype)}"
        raise invalid("tensor.data", f"{size} bytes ({what})", f"{len(data)}")
    return pixels_of(np.frombuffer(data, _DTYPES[dtype]).reshape(shape), "tensor.data")


def pixels_of(array: NDArray[Any], field: str, normalised: Preprocessing | None = None) -> Pixels:
    """An image's values, uint8 (divided by 255) or float32 of any shape, as float32 in [0, 1].

    Args:
        array: the values.
        field: of the request, for the error.
        normalised: by what floats [C, H, W] were normalised; None where they are pixels.

    Raises:
        StatusError: INVALID_ARGUMENT for NaN, infinity, or values outside [0, 1].
    """
    try:
        if normalised is not None and array.dtype != np.uint8:
            return images.of_normalised(array, normalised)
        return images.pixels_of(array)
    except ImageError as error:
        raise invalid(field, error.expected, error.got) from None


def shown_shape(shape: Sequence[int]) -> str:
    """A shape as an error shows it: a client may make up one of any length."""
    if len(shape) > MOST_DIMENSIONS:
        return f"more than {MOST_DIMENSIONS} dimensions"
    return str(list(shape)) if len(shape) <= 8 else f"{len(shape)} dimensions"
