"""Worst messages: what costs a server most for the bytes that it takes, found by going through the methods' types.

Whatever a message can hold is repeated as often as its size allows: the field that holds nothing, the smallest number,
one long text; alone, and within each of the messages that it can stand in, behind the fields of an honest request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from askance.service.pb.askance.v1 import screening_pb2
from askance.service.pb.inference import inference_pb2

SERVICES: tuple[ServiceDescriptor, ...] = (
    screening_pb2.DESCRIPTOR.services_by_name["Screening"],
    inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
_UNKNOWN = 1000  # a field number that no type has
_MARGIN = 64  # bytes left for what stands around the filling


@dataclass(frozen=True)
class Worst:
    """One message.

    Attributes:
        name: of what it repeats: the method, the path of fields, and how.
        path: of the method.
        content: the message, encoded.
    """

    name: str
    path: str
    content: bytes


def worst_messages(size: int, honest: Mapping[str, bytes]) -> Iterator[Worst]:
    """All of them, for all methods of all services.

    Args:
        size: bytes of each, nearly.
        honest: encoded requests by the method's path, to stand before what is repeated.
    """
    for service in SERVICES:
        for method in service.methods:
            path = f"/{service.full_name}/{method.name}"
            before = honest.get(path, b"")
            room = size - len(before) - _MARGIN
            for name, filling in _fillings(method.input_type, room):
                yield Worst(f"{method.name}: {name}", path, before + filling)


def _fillings(kind: Descriptor, room: int) -> Iterator[tuple[str, bytes]]:
    """What a message of a type can be filled with, `room` bytes of it."""
    yield "unknown fields", _times(_head(_UNKNOWN, 0) + b"\1", room)
    yield "unknown groups", _times(_head(_UNKNOWN, 3) + _head(_UNKNOWN, 4), room)
    for field in kind.fields:
        yield from ((f"{field.name}{name}", filling) for name, filling in _of(field, room))


def _of(field: FieldDescriptor, room: int) -> Iterator[tuple[str, bytes]]:
    number = field.number
    if field.message_type is not None:
        yield " empty", _times(_framed(number, b""), room)
        for name, filling in _fillings(field.message_type, room - _MARGIN):
            yield f".{name}", _framed(number, filling)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:  # bytes, too
        yield " empty", _times(_framed(number, b""), room)
        yield " long", _framed(number, b"x" * room)
    else:
        yield " one by one", _times(_head(number, _wire_type(field)) + _one(field), room)
        if field.is_packed:
            yield " packed", _framed(number, _times(_one(field), room))


def _wire_type(field: FieldDescriptor) -> int:
    return {FieldDescriptor.CPPTYPE_DOUBLE: 1, FieldDescriptor.CPPTYPE_FLOAT: 5}.get(field.cpp_type, 0)


def _one(field: FieldDescriptor) -> bytes:
    return b"\1" if _wire_type(field) == 0 else bytes(8 if _wire_type(field) == 1 else 4)


def _times(unit: bytes, room: int) -> bytes:
    return unit * (room // len(unit))


def _framed(number: int, content: bytes) -> bytes:
    return _head(number, 2) + varint(len(content)) + content


def _head(number: int, wire_type: int) -> bytes:
    return varint(number << 3 | wire_type)


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
