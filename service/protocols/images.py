"""Images on the wire: a request's image as the classifier takes it, or INVALID_ARGUMENT with the field it came in.

What is accepted, and why: `askance.classifiers.images`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from askance.classifiers import images
from askance.classifiers.images import ImageError
from askance.detectors.preprocessing import Preprocessing
from askance.service.errors import invalid
from askance.service.pb.askance.v1 import screening_pb2

_DTYPES: Mapping[int, np.dtype[Any]] = {
    screening_pb2.Tensor.FP32: np.dtype("<f4"),
    screening_pb2.Tensor.UINT8: np.dtype("u1"),
}


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
        StatusError: INVALID_ARGUMENT.
    """
    try:
        return images.decode(content, preprocessing, max_pixels)
    except ImageError as error:
        raise invalid("encoded", error.expected, error.got) from None


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
    """An image's values, uint8 (divided by 255) or float32 of any shape, as float32 in [0, 1].

    Args:
        array: the values.
        field: of the request, for the error.

    Raises:
        StatusError: INVALID_ARGUMENT for NaN, infinity, or values outside [0, 1].
    """
    try:
        return images.pixels_of(array)
    except ImageError as error:
        raise invalid(field, error.expected, error.got) from None


def _shown(shape: Sequence[int]) -> str:
    return str(list(shape)) if len(shape) <= 8 else f"{len(shape)} dimensions"
