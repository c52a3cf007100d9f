"""Tensors of the Open Inference Protocol: the images of a request, and the outputs of an answer."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from askance.detectors.preprocessing import Preprocessing
from askance.detectors.screen import Prediction, Screen, Screening
from askance.service.guard.access import Role
from askance.service.runtime.screener import SMALL, InputImage
from askance.service.protocols.images import decode, pixels_of
from askance.service.observability.requests import ERROR, UNSCREENED
from askance.service.pb.inference import inference_pb2 as pb
from askance.service.errors import StatusError, invalid

IMAGE, ENCODED = "image", "encoded"
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "UINT8": np.dtype("u1"),
    "FP64": np.dtype("<f8"),
    "INT32": np.dtype("<i4"),
}
_LENGTH = struct.Struct("<I")  # before each element of BYTES


def pictures_of(request: pb.ModelInferRequest, preprocessing: Preprocessing, max_batch: int) -> list[InputImage]:
    """The images of a request: one input, `image` (FP32 or UINT8, [N, C, H, W]) or `encoded` (BYTES, [N] or [N, 1]).

    Args:
        request: with raw or typed contents.
        preprocessing: the shape of an image.
        max_batch: the greatest N.

    Raises:
        StatusError: INVALID_ARGUMENT for what is wrong with all of it; what is wrong with one image, its InputImage says.
    """
    if len(request.inputs) != 1:
        raise invalid("inputs", f"one, {IMAGE} or {ENCODED}", str(len(request.inputs)))
    (tensor,) = request.inputs
    if any(name.startswith("shared_memory") for name in tensor.parameters):
        raise StatusError(grpc.StatusCode.UNIMPLEMENTED, "shared memory is not served: send the contents", "invalid")
    if len(request.raw_input_contents) > 1:
        raise invalid("raw_input_contents", "one entry for one input", f"{len(request.raw_input_contents)}")
    if request.raw_input_contents and tensor.HasField("contents"):
        raise invalid("inputs[0].contents", "nothing beside raw_input_contents", "both")
    raw = request.raw_input_contents[0] if request.raw_input_contents else None
    if tensor.name == IMAGE:
        images = _images(tensor, raw, preprocessing.shape, max_batch)
        return [InputImage(partial(_pixels, image), image.nbytes <= SMALL) for image in images]
    if tensor.name == ENCODED:
        return [InputImage(partial(decode, content), False) for content in _files(tensor, raw, max_batch)]
    raise invalid("inputs[0].name", f"{IMAGE} or {ENCODED}", _shown(tensor.name))


def _pixels(image: NDArray[Any], _preprocessing: Preprocessing, _max_pixels: int) -> Tensor:
    return pixels_of(image, IMAGE)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _count(tensor: pb.ModelInferRequest.InferInputTensor, fits: bool, expected: str, max_batch: int) -> int:
    """N of a shape that fits."""
    shape = list(tensor.shape)
    if not fits or not 1 <= shape[0] <= max_batch:
        shown = str(shape) if len(shape) <= 8 else f"{len(shape)} dimensions"
        raise invalid(f"{tensor.name}.shape", f"{expected}, N from 1 to {max_batch}", shown)
    return int(shape[0])


def _images(
    tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, shape: tuple[int, int, int], max_batch: int
) -> NDArray[Any]:
    if tensor.datatype not in ("FP32", "UINT8"):
        raise invalid(f"{IMAGE}.datatype", "FP32 or UINT8", _shown(tensor.datatype))
    fits = tuple(tensor.shape[1:]) == shape
    count = _count(tensor, fits, f"[N, {', '.join(map(str, shape))}] (channels, height, width)", max_batch)
    dtype, values = _DTYPES[tensor.datatype], count * math.prod(shape)
    if raw is not None:
        if len(raw) != values * dtype.itemsize:
            raise invalid(f"{IMAGE}'s contents", f"{values * dtype.itemsize} bytes", str(len(raw)))
        return np.frombuffer(raw, dtype).reshape(count, *shape)
    contents = tensor.contents
    given: Sequence[float] = contents.fp32_contents if tensor.datatype == "FP32" else contents.uint_contents
    if len(given) != values:
        field = "fp32_contents" if tensor.datatype == "FP32" else "uint_contents"
        raise invalid(f"{IMAGE}.contents.{field}", f"{values} values", str(len(given)))
    if tensor.datatype == "UINT8" and max(given) > np.iinfo(np.uint8).max:
        raise invalid(f"{IMAGE}.contents.uint_contents", "values from 0 to 255", str(max(given)))
    return np.array(given, dtype).reshape(count, *shape)


def _files(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, max_batch: int) -> list[bytes]:
    if tensor.datatype != "BYTES":
        raise invalid(f"{ENCODED}.datatype", "BYTES", _shown(tensor.datatype))
    fits = len(tensor.shape) in (1, 2) and tuple(tensor.shape[1:]) in ((), (1,))
    count = _count(tensor, fits, "[N] or [N, 1]", max_batch)
    elements = list(tensor.contents.bytes_contents) if raw is None else _elements(raw)
    if len(elements) != count:
        raise invalid(f"{ENCODED}'s contents", f"{count} elements", str(len(elements)))
    return elements


def _elements(raw: bytes) -> list[bytes]:
    """The elements of a BYTES tensor, each preceded by its length."""
    elements, at = [], 0
    while at < len(raw):
        start = at + _LENGTH.size
        if start > len(raw) or (end := start + _LENGTH.unpack_from(raw, at)[0]) > len(raw):
            raise invalid(f"{ENCODED}'s contents", "each element after its length (4 bytes)", "fewer bytes")
        elements.append(raw[start:end])
        at = end
    return elements


@dataclass(frozen=True)
class Output:
    """One output of an answer, a row for each image.

    Attributes:
        name: of the tensor.
        datatype: "BYTES", "FP32", "FP64" or "INT32".
        width: numbers an image.
        of: what it says of an image that was answered; a sequence where `width` is not one.
        missing: what it says of one that was not, for each number.
        role: what a client must be granted to see it.
        prediction: whether it is of the prediction, not of the verdict.
    """

    name: str
    datatype: str
    width: int
    of: Callable[[Any], Any]  # of a Prediction where `prediction`, else of a Screening
    missing: Any
    role: Role = Role.PREDICT
    prediction: bool = False

    def raw(self, outcomes: Sequence[Prediction | StatusError]) -> bytes:
        """The tensor's content, [N, width] row by row, little-endian."""
        rows = [self._row(outcome) for outcome in outcomes]
        if self.datatype == "BYTES":
            return b"".join(_LENGTH.pack(len(text)) + text for row in rows for text in row)
        return np.array(rows, _DTYPES[self.datatype]).tobytes()

    def _row(self, outcome: Prediction | StatusError) -> list[Any]:
        if isinstance(outcome, StatusError):
            row = [str(outcome) if self.name == "error" else self.missing] * self.width
        elif not (self.prediction or isinstance(outcome, Screening)):
            row = [UNSCREENED if self.name == "verdict" else self.missing] * self.width
        else:
            found = self.of(outcome)
            row = [found] if self.width == 1 and not isinstance(found, tuple) else list(found)
        return [text.encode() for text in row] if self.datatype == "BYTES" else row


def outputs_of(screen: Screen) -> dict[str, Output]:
    """Everything that an answer can hold, in order."""
    classes, detectors = len(screen.class_names), len(screen.detectors)
    outputs = (
        Output("label", "BYTES", 1, lambda s: s.label, "", prediction=True),
        Output("index", "INT32", 1, lambda s: s.index, -1, prediction=True),
        Output("probabilities", "FP32", classes, lambda s: s.probabilities, math.nan, prediction=True),
        Output("verdict", "BYTES", 1, lambda s: s.verdict.value, ERROR),
        Output("p_value", "FP64", 1, lambda s: s.fused.p_value, math.nan, Role.SCORES),
        Output("score", "FP64", 1, lambda s: s.fused.score, math.nan, Role.SCORES),
        Output("p_values", "FP64", detectors, _p_values, math.nan, Role.SCORES),
        Output("scores", "FP64", detectors, _scores, math.nan, Role.SCORES),
        Output("error", "BYTES", 1, lambda _: "", "", prediction=True),
        Output("explanation", "BYTES", 1, _explanation, "", Role.EXPLANATIONS),
    )
    return {output.name: output for output in outputs}


def _p_values(screening: Screening) -> tuple[float, ...]:
    return tuple(word.p_value for word in screening.detectors)


def _scores(screening: Screening) -> tuple[float, ...]:
    return tuple(word.score for word in screening.detectors)


def _explanation(screening: Screening) -> str:
    return json.dumps({word.name: word.explanation for word in screening.detectors})
