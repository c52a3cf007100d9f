"""Messages of the Open Inference Protocol over HTTP: JSON, and JSON with tensors behind it as bytes."""

from __future__ import annotations

import base64
import binascii
from itertools import chain
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from askance.service.errors import Code, StatusError, invalid, too_large
from askance.service.guard.limits import QUESTION_BYTES
from askance.service.protocols.images import MOST_DIMENSIONS
from askance.service.protocols.inference_core import InferenceAnswer
from askance.service.protocols.inference_tensors import (
    InferenceRequest,
    InputTensor,
    OutputTensor,
    Parameters,
    RequestedOutput,
    shown,
)

HEADER_LENGTH = "inference-header-content-length"
"""The header that says how long the JSON is, where tensors follow it as bytes (the binary tensor extension)."""
MOST_JSON_BYTES = 4 * 1024 * 1024
"""Each byte of JSON can take 25 in memory, while nobody else is served; of a tensor behind it, one."""
_BINARY_SIZE, _BINARY, _ALL_BINARY = "binary_data_size", "binary_data", "binary_data_output"
_CONTENT_TYPE, _BASE64 = "content_type", "base64"
_MOST_TENSORS = 64  # of a request; one is wanted, and more are as wrong as two


def _without_nulls(sent: Any) -> Any:
    """Clients that write out every field say null for what is not there."""
    return {key: value for key, value in sent.items() if value is not None} if isinstance(sent, dict) else sent


_Values = Annotated[dict[str, str | int | float | bool], BeforeValidator(_without_nulls)]


class _Message(BaseModel):
    model_config = ConfigDict(strict=True)  # what is not known is passed over, as the protocol has it
    _nulls = model_validator(mode="before")(_without_nulls)


M = TypeVar("M", bound=_Message)


class _Input(_Message):
    name: str
    datatype: str
    shape: Annotated[list[int], Field(max_length=MOST_DIMENSIONS)]
    parameters: _Values = {}
    data: Any = None


class _Output(_Message):
    name: str
    parameters: _Values = {}


class _InferRequest(_Message):
    id: str = ""
    parameters: _Values = {}
    inputs: Annotated[list[_Input], Field(max_length=_MOST_TENSORS)]
    outputs: Annotated[list[_Output], Field(max_length=_MOST_TENSORS)] = []


class _ParametersOnly(_Message):
    parameters: dict[str, Any] = {}


def infer_request(body: bytes, header_length: str | None, model: str, version: str) -> InferenceRequest:
    """A request to infer, from its body.

    Args:
        body: JSON, and behind it, in the inputs' order, what has a `binary_data_size`.
        header_length: of the JSON, as its header says; None if nothing follows.
        model, version: from the path.

    Raises:
        StatusError: INVALID_ARGUMENT; only shapes and counts are judged here, contents where they are walked.
            RESOURCE_EXHAUSTED, the JSON is longer than MOST_JSON_BYTES.
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    if length > MOST_JSON_BYTES:
        raise too_large(MOST_JSON_BYTES, "of JSON", "send tensors as bytes behind it")
    message = _read(_InferRequest, body[:length])
    inputs, at = [], length
    for i, sent in enumerate(message.inputs):
        size = sent.parameters.get(_BINARY_SIZE)
        if size is None:
            inputs.append(_with_values(sent, f"inputs[{i}]"))
            continue
        left = len(body) - at
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= left:
            raise invalid(
                f"inputs[{i}].parameters.{_BINARY_SIZE}", f"at most the {left} bytes that follow", shown(size)
            )
        if sent.data is not None:
            raise invalid(f"inputs[{i}].data", f"nothing beside {_BINARY_SIZE}", "both")
        inputs.append(InputTensor(sent.name, sent.datatype, tuple(sent.shape), sent.parameters, body[at : at + size]))
        at += size
    if at != len(body):
        raise invalid("body", f"{at - length} bytes behind the JSON, as {_BINARY_SIZE} says", f"{len(body) - length}")
    outputs = [RequestedOutput(one.name, one.parameters) for one in message.outputs]
    return InferenceRequest(model, version, message.id, inputs, outputs, message.parameters)


def parameters_of(body: bytes) -> Parameters:
    """The parameters of a request that has nothing else; none where the body is empty.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    if len(body) > QUESTION_BYTES:
        raise invalid("body", f"at most {QUESTION_BYTES} bytes", str(len(body)))
    return _read(_ParametersOnly, body).parameters if body.strip() else {}


def infer_response(request: InferenceRequest, answer: InferenceAnswer) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON where tensors follow it as bytes: those that were asked so."""
    default = request.parameters.get(_ALL_BINARY) is True
    binary = {one.name: one.parameters.get(_BINARY, default) is True for one in request.outputs}
    outputs, behind = [], []
    for tensor in answer.outputs:
        described: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if binary.get(tensor.name, default):
            packed = tensor.packed()
            behind.append(packed)
            outputs.append(described | {"parameters": {_BINARY_SIZE: len(packed)}})
        else:
            outputs.append(described | {"data": _json_data(tensor)})
    message = {
        "model_name": answer.model_name,
        "model_version": answer.model_version,
        "parameters": answer.parameters,
        "outputs": outputs,
    }
    if request.id:
        message["id"] = request.id
    content = orjson.dumps(message)  # what is not finite is null
    return b"".join((content, *behind)), len(content) if behind else None


def _json_data(tensor: OutputTensor) -> list[Any]:
    """Flat, row by row."""
    values = [value for row in tensor.rows for value in row]
    return [text.decode() for text in values] if tensor.datatype == "BYTES" else values


def _length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= most):
        raise invalid(f"header {HEADER_LENGTH}", f"the length of the JSON, at most the body's {most}", shown(text))
    return int(text)


def _read(kind: type[M], content: bytes) -> M:
    try:
        return kind.model_validate(orjson.loads(content))
    except orjson.JSONDecodeError as error:
        raise StatusError(Code.INVALID_ARGUMENT, f"the body is not JSON: {error}", "invalid") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(shown(part).strip("'") for part in first["loc"]) or "body"
        what = "expected an object" if first["type"] == "model_type" else _plain(first["msg"])
        raise StatusError(Code.INVALID_ARGUMENT, f"{where}: {what}", "invalid") from None


def _with_values(sent: _Input, where: str) -> InputTensor:
    """An input whose contents came as JSON: flat, or nested as its shape."""
    if not isinstance(sent.data, list):
        raise invalid(f"{where}.data", f"a list, or {_BINARY_SIZE} and bytes behind the JSON", "neither")
    read = _texts if sent.datatype == "BYTES" else _numbers
    return InputTensor(sent.name, sent.datatype, tuple(sent.shape), sent.parameters, values=read(sent, f"{where}.data"))


def _numbers(sent: _Input, where: str) -> list[int | float]:
    """The numbers, row by row; types are looked at before anything is made of them."""
    values: list[Any] = sent.data
    while (kinds := set(map(type, values))) == {list}:
        if len(set(map(len, values))) > 1:
            raise invalid(where, "a flat list, or one nested as the shape", "lists that differ in length")
        values = list(chain.from_iterable(values))
    if not kinds <= {int, float}:
        raise invalid(where, "numbers", "something else")
    return values


def _texts(sent: _Input, where: str) -> list[bytes]:
    """The elements of BYTES: text as it is, files in base64."""
    values = [one[0] if isinstance(one, list) and len(one) == 1 else one for one in sent.data]  # [N, 1], nested
    if not all(isinstance(one, str) for one in values):
        raise invalid(where, "strings", "something else")
    if sent.parameters.get(_CONTENT_TYPE) != _BASE64:
        return [one.encode() for one in values]
    try:
        return [base64.b64decode(one, validate=True) for one in values]
    except (binascii.Error, ValueError):
        raise invalid(where, "base64, as the parameter content_type says", "something else") from None


def _plain(message: str) -> str:
    """Pydantic's message in the words of our own."""
    return message.replace("Input should be", "expected").replace("Field required", "expected, and not there")
