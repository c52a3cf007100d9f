"""Wire: what a protobuf message would cost, found from its encoding before anything is made of it.

A field that holds nothing takes two bytes on the wire and a hundred in memory, a number one byte and eight: a message
of 16 MiB could ask for a gigabyte. No honest request has thousands of fields, so counting ends early.
"""

from __future__ import annotations

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from askance.service.errors import StatusError, invalid

MOST_FIELDS = 1000  # of a message, with those of the messages in it, beside one for each image
MOST_TEXT_BYTES = 64 * 1024  # of a name, an id, a parameter
MOST_NUMBER_BYTES = (
    1024 * 1024
)  # of whole numbers, each read by itself: a megabyte of them takes 3 ms, and eight megabytes
_ONE_FIELD_BYTES = 2  # what a field takes at least
_LONGEST_VARINT = 70  # bits
_FIXED, _LENGTH_FIRST = {1: 8, 5: 4}, 2  # wire types beside 0, a varint; 3 and 4, groups, are nobody's any more
_READ_SINGLY = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT64,
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_ENUM,
        FieldDescriptor.CPPTYPE_BOOL,
    }
)


class _MalformedError(Exception):
    """It is no message: its parser says so, too."""


def request_type(service: str, method: str) -> Descriptor:
    """The type of a method's messages.

    Args:
        service: its full name.
        method: its own name.
    """
    found: Descriptor = descriptor_pool.Default().FindMethodByName(f"{service}.{method}").input_type
    return found


def check(content: bytes, kind: Descriptor, most_images: int = 0) -> None:
    """Refuse a message that would take far more memory than it has bytes.

    Args:
        content: the message, encoded.
        kind: its type.
        most_images: that it may hold, an element each.

    Raises:
        StatusError: INVALID_ARGUMENT, it has too many fields, numbers too many for its bytes, a text too long, or is no
            message.
    """
    most = MOST_FIELDS + most_images
    if len(content) <= _ONE_FIELD_BYTES * most:
        return
    try:
        _count(content, kind, most)
    except (_MalformedError, IndexError):
        raise unreadable(content) from None


def unreadable(content: bytes) -> StatusError:
    """INVALID_ARGUMENT: the bytes are no message of the method's type."""
    return invalid("request", "a message of the method's type", f"{len(content)} bytes that are not one")


def _count(content: bytes, kind: Descriptor, most: int) -> None:
    fields, numbers, at = 0, 0, 0
    inside: list[tuple[int, Descriptor]] = [(len(content), kind)]  # messages that the next field is in, and their ends
    while inside:
        end, message = inside[-1]
        if at >= end:
            if at > end:
                raise _MalformedError
            inside.pop()
            continue
        fields += 1
        if fields > most:
            raise invalid("request", f"at most {most} fields and elements", "more: send numbers as raw bytes")
        tag, at = _varint(content, at)
        wire_type = tag & 7
        if wire_type == 0:
            _, at = _varint(content, at)
        elif wire_type in _FIXED:
            at += _FIXED[wire_type]
        elif wire_type != _LENGTH_FIRST:
            raise _MalformedError
        else:
            size, at = _varint(content, at)
            field = message.fields_by_number.get(tag >> 3)
            if field is not None and field.message_type is not None:
                inside.append((at + size, field.message_type))
                continue
            if field is not None and field.type == FieldDescriptor.TYPE_STRING and size > MOST_TEXT_BYTES:
                raise invalid(field.name, f"at most {MOST_TEXT_BYTES} bytes of text", str(size))
            if field is not None and field.cpp_type in _READ_SINGLY:
                numbers += size
            at += size
    if numbers > MOST_NUMBER_BYTES:
        raise invalid(
            "request", f"at most {MOST_NUMBER_BYTES} bytes of whole numbers", f"{numbers}: send them as raw bytes"
        )


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    byte = content[at]
    at += 1
    if byte < 0x80:
        return byte, at
    value, shift = byte & 0x7F, 7
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift >= _LONGEST_VARINT:
            raise _MalformedError
