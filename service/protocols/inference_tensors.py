"""Tensors of the Open Inference Protocol, over gRPC and HTTP: the images of a request, the outputs of an answer."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from askance.answers import Screening, Verdict
from askance.screening.images import Pixels
from askance.screening.preprocessing import Preprocessing
from askance.screening.screen import Screen
from askance.service.call import Role
from askance.service.errors import Code, StatusError, blocked, invalid
from askance.service.observability.requests import ERROR
from askance.service.protocols.images import decode, pixels_of, shown_shape
from askance.service.protocols.inference_names import TensorNames
from askance.service.runtime.batcher import Outcome
from askance.service.runtime.screener import SMALL_BYTES, InputImage

IMAGE, ENCODED = "image", "encoded"
INPUTS = TensorNames("model.inputs", {}, (IMAGE, ENCODED))
"""The inputs' names, where nobody calls them otherwise."""
Parameters = Mapping[str, str | int | float | bool]
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "UINT8": np.dtype("u1"),
    "FP64": np.dtype("<f8"),
    "INT32": np.dtype("<i4"),
}
_LENGTH = struct.Struct("<I")  # before each element of BYTES


@dataclass(frozen=True)
class InputTensor:
    """One input of a request, its contents not yet walked.

    Attributes:
        name, datatype, shape, parameters: as sent.
        raw: its contents as bytes, little-endian; None where they came as `values`.
        values: numbers, or the elements of BYTES.
        values_field: what `values` is called on the wire, for errors.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Parameters = field(default_factory=dict)
    raw: bytes | None = None
    values: Sequence[Any] = ()
    values_field: str = "data"


@dataclass(frozen=True)
class RequestedOutput:
    """One output that a request names."""

    name: str
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class InferenceRequest:
    """A request to infer, whatever it came by."""

    model_name: str
    model_version: str
    id: str
    inputs: Sequence[InputTensor]
    outputs: Sequence[RequestedOutput]
    parameters: Parameters


@dataclass(frozen=True)
class OutputTensor:
    """One output of an answer.

    Attributes:
        name, datatype: as asked for.
        rows: one for each image; bytes where the datatype is BYTES.
    """

    name: str
    datatype: str
    rows: Sequence[Sequence[Any]]

    @property
    def shape(self) -> tuple[int, int]:
        """[N, width]."""
        return len(self.rows), len(self.rows[0])

    def packed(self) -> bytes:
        """The contents row by row, little-endian."""
        if self.datatype == "BYTES":
            return b"".join(_LENGTH.pack(len(text)) + text for row in self.rows for text in row)
        return np.array(self.rows, _DTYPES[self.datatype]).tobytes()


def images_of(
    request: InferenceRequest,
    preprocessing: Preprocessing,
    max_batch: int,
    names: TensorNames = INPUTS,
    *,
    normalised: bool = False,
) -> list[InputImage]:
    """The images of a request: one input, `image` (FP32 or UINT8, [N, C, H, W]) or `encoded` (BYTES, [N] or [N, 1]).

    Args:
        request: with raw or typed contents; counts and sizes are judged before contents are walked.
        preprocessing: the shape of an image.
        max_batch: the greatest N.
        names: what clients call the inputs.
        normalised: whether FP32 is normalised by the preprocessing's mean and std.

    Raises:
        StatusError: INVALID_ARGUMENT for what is wrong with all of it; of one image, its InputImage says it.
    """
    known = f"{names.shown(IMAGE)} or {names.shown(ENCODED)}"
    if len(request.inputs) != 1:
        raise invalid("inputs", f"one, {known}", str(len(request.inputs)))
    (tensor,) = request.inputs
    if any(name.startswith("shared_memory") for name in tensor.parameters):
        raise StatusError(Code.UNIMPLEMENTED, "shared memory is not served: send the contents", "invalid")
    own = names.own(tensor.name)
    if own == IMAGE:
        images = _images(tensor, preprocessing.shape, max_batch)
        read = partial(_pixels, tensor.name, normalised)
        return [InputImage(partial(read, image), image.nbytes <= SMALL_BYTES) for image in images]
    if own == ENCODED:
        read = partial(_decoded, tensor.name)
        return [InputImage(partial(read, content), False, content) for content in _files(tensor, max_batch)]
    raise invalid("inputs[0].name", known, shown(tensor.name))


def _pixels(
    field: str, normalised: bool, image: NDArray[Any], preprocessing: Preprocessing, _max_pixels: int
) -> Pixels:
    return pixels_of(image, field, preprocessing if normalised else None)


def _decoded(field: str, content: bytes | memoryview, preprocessing: Preprocessing, max_pixels: int) -> Pixels:
    return decode(bytes(content), preprocessing, max_pixels, field)


def shown(value: object) -> str:
    """A value as an error shows it; a text that a client made up may be of any length."""
    return repr(value[:40] + "..." if isinstance(value, str) and len(value) > 40 else value)


def _count(tensor: InputTensor, fits: bool, expected: str, max_batch: int) -> int:
    """N of a shape that fits."""
    shape = list(tensor.shape)
    if not fits or not 1 <= shape[0] <= max_batch:
        raise invalid(f"{tensor.name}.shape", f"{expected}, N from 1 to {max_batch}", shown_shape(shape))
    return int(shape[0])


def _images(tensor: InputTensor, shape: tuple[int, int, int], max_batch: int) -> NDArray[Any]:
    if tensor.datatype not in ("FP32", "UINT8"):
        raise invalid(f"{tensor.name}.datatype", "FP32 or UINT8", shown(tensor.datatype))
    fits = tuple(tensor.shape[1:]) == shape
    count = _count(tensor, fits, f"[N, {', '.join(map(str, shape))}] (channels, height, width)", max_batch)
    dtype, values = _DTYPES[tensor.datatype], count * math.prod(shape)
    if tensor.raw is not None:
        if len(tensor.raw) != values * dtype.itemsize:
            raise invalid(f"{tensor.name}'s contents", f"{values * dtype.itemsize} bytes", str(len(tensor.raw)))
        return np.frombuffer(tensor.raw, dtype).reshape(count, *shape)
    where = f"{tensor.name}.{tensor.values_field}"
    if len(tensor.values) != values:
        raise invalid(where, f"{values} values", str(len(tensor.values)))
    given = np.array(tensor.values)
    if given.dtype.kind not in "iuf":
        raise invalid(where, "numbers", "something else")
    if tensor.datatype == "UINT8":
        wrong = given[(given < 0) | (given > np.iinfo(np.uint8).max) | (given != np.floor(given))]
        if len(wrong):
            raise invalid(where, "values from 0 to 255", f"{wrong.max():g}")
    with np.errstate(over="ignore"):  # a number too great for FP32 is infinite, and refused as such
        return given.astype(dtype).reshape(count, *shape)


def _files(tensor: InputTensor, max_batch: int) -> Sequence[bytes | memoryview]:
    if tensor.datatype != "BYTES":
        raise invalid(f"{tensor.name}.datatype", "BYTES", shown(tensor.datatype))
    fits = len(tensor.shape) in (1, 2) and tuple(tensor.shape[1:]) in ((), (1,))
    count = _count(tensor, fits, "[N] or [N, 1]", max_batch)
    elements = tensor.values if tensor.raw is None else _elements(tensor.raw, count, tensor.name)
    if len(elements) != count:
        raise invalid(f"{tensor.name}'s contents", f"{count} elements", str(len(elements)))
    return list(elements)


def _elements(raw: bytes, count: int, name: str = ENCODED) -> list[memoryview]:
    """The elements of a BYTES tensor, each preceded by its length; no more are looked at than are expected."""
    elements: list[memoryview] = []
    at, view = 0, memoryview(raw)  # a file is copied when its turn comes
    while at < len(raw):
        if len(elements) == count:
            raise invalid(f"{name}'s contents", f"{count} elements", "more bytes")
        start = at + _LENGTH.size
        if start > len(raw) or (end := start + _LENGTH.unpack_from(raw, at)[0]) > len(raw):
            raise invalid(f"{name}'s contents", "each element after its length (4 bytes)", "fewer bytes")
        elements.append(view[start:end])
        at = end
    return elements


@dataclass(frozen=True)
class Output:
    """One output of an answer, a row for each image.

    Attributes:
        name: of the tensor.
        datatype: "BYTES", "FP32", "FP64" or "INT32".
        width: numbers an image.
        of: what it says of an Answer that has what `needs` names; a sequence where `width` is not one.
        missing: what it says of one that has not, for each number.
        needs: "prediction", "screening", or "" (it is of every image, errors too).
        role: what a client must be granted to see it.
    """

    name: str
    datatype: str
    width: int
    of: Callable[[Any], Any]  # of a Prediction, a Screening, or an Outcome, by `needs`
    missing: Any
    needs: str
    role: Role = Role.PREDICT

    @property
    def is_of_prediction(self) -> bool:
        """Whether it says nothing of the verdict."""
        return self.needs == "prediction" or self.of is _error

    def tensor(self, outcomes: Sequence[Outcome]) -> OutputTensor:
        """The rows of some images."""
        return OutputTensor(self.name, self.datatype, [self._row(outcome) for outcome in outcomes])

    def _row(self, outcome: Outcome) -> list[Any]:
        found: Any = outcome
        if self.needs:
            found = None if isinstance(outcome, StatusError) else getattr(outcome, self.needs)
        if found is None:
            row = [self.missing] * self.width
        else:
            said = self.of(found)
            row = list(said) if isinstance(said, tuple) else [said]
        return [text.encode() for text in row] if self.datatype == "BYTES" else row


def outputs_of(screen: Screen) -> dict[str, Output]:
    """Everything that an answer can hold, in order."""
    return {output.name: output for output in _outputs(len(screen.class_names), len(screen.detectors))}


def _outputs(classes: int, detectors: int) -> tuple[Output, ...]:
    return (
        Output("label", "BYTES", 1, lambda p: p.label, "", "prediction"),
        Output("index", "INT32", 1, lambda p: p.index, -1, "prediction"),
        Output("probabilities", "FP32", classes, lambda p: p.probabilities, math.nan, "prediction"),
        Output("logits", "FP32", classes, lambda p: p.logits, math.nan, "prediction", Role.LOGITS),
        Output("verdict", "BYTES", 1, _verdict, "", ""),
        Output("p_value", "FP64", 1, lambda s: s.fused.p_value, math.nan, "screening", Role.SCORES),
        Output("score", "FP64", 1, lambda s: s.fused.score, math.nan, "screening", Role.SCORES),
        Output("p_values", "FP64", detectors, _p_values, math.nan, "screening", Role.SCORES),
        Output("scores", "FP64", detectors, _scores, math.nan, "screening", Role.SCORES),
        Output("error", "BYTES", 1, _error, "", ""),
        Output("explanation", "BYTES", 1, _explanation, "", "screening", Role.EXPLANATIONS),
        # the youngest last: a client may read its outputs by their place
        Output("reasons", "FP64", 3, _reasons, math.nan, "screening", Role.SCORES),
    )


def top_classes(output: Output, class_names: Sequence[str], count: int) -> Output:
    """Triton's classification extension: the `count` greatest classes as "value:index:label", greatest first.

    Args:
        output: `probabilities` or `logits`, whose values they are.
        class_names: the labels.
        count: from 1 to the number of classes.
    """

    def strings(prediction: Any) -> tuple[str, ...]:
        values = output.of(prediction)
        order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
        return tuple(f"{values[i]:f}:{i}:{class_names[i]}" for i in order)

    return replace(output, datatype="BYTES", width=count, of=strings, missing="")


def _verdict(outcome: Outcome) -> str:
    if isinstance(outcome, StatusError) or outcome.verdict is None:
        return ERROR
    return outcome.verdict.value


def _error(outcome: Outcome) -> str:
    error = error_of(outcome)
    return "" if error is None else str(error)


def error_of(outcome: Outcome) -> StatusError | None:
    """Why an image has no prediction; None if it has one."""
    if isinstance(outcome, StatusError):
        return outcome
    return blocked() if outcome.verdict is Verdict.BLOCKED else None


def _p_values(screening: Screening) -> tuple[float, ...]:
    return tuple(word.p_value for word in screening.detectors)


def _scores(screening: Screening) -> tuple[float, ...]:
    return tuple(word.score for word in screening.detectors)


def _reasons(screening: Screening) -> tuple[float, ...]:
    return tuple(reason.p_value for reason in screening.reasons)


def _explanation(screening: Screening) -> str:
    return json.dumps({word.name: word.explanation for word in screening.detectors})


OUTPUT_NAMES = tuple(output.name for output in _outputs(1, 1))
"""What an answer can hold, by the names of ours."""
