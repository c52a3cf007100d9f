"""WebP: what a file's header says, read before Pillow sees it, which takes room for all pixels when it opens one."""

from __future__ import annotations

from dataclasses import dataclass

_ANIMATED = 0x02  # of VP8X's flags
_SIZE_BITS = 14  # of a side, in the chunks of one image
_LOSSY_START, _LOSSLESS_START = b"\x9d\x01\x2a", b"\x2f"


@dataclass(frozen=True)
class Header:
    """A WebP file's first chunk.

    Attributes:
        width, height: of the canvas.
        is_animated: whether it says that it holds several pictures.
    """

    width: int
    height: int
    is_animated: bool = False


def is_webp(content: bytes) -> bool:
    """Whether a file says that it is a WebP."""
    return content[:4] == b"RIFF" and content[8:12] == b"WEBP"


def header_of(content: bytes) -> Header | None:
    """What a WebP file's first chunk says (RFC 9649); None where it is none that a decoder would take."""
    name, chunk = content[12:16], content[20:30]
    mask = (1 << _SIZE_BITS) - 1
    if name == b"VP8X" and len(chunk) == 10:
        return Header(1 + _number(chunk[4:7]), 1 + _number(chunk[7:10]), bool(chunk[0] & _ANIMATED))
    if name == b"VP8 " and len(chunk) == 10 and chunk[3:6] == _LOSSY_START:
        return Header(_number(chunk[6:8]) & mask, _number(chunk[8:10]) & mask)  # above them: how to scale it up
    if name == b"VP8L" and chunk[:1] == _LOSSLESS_START and len(chunk) >= 5:
        bits = _number(chunk[1:5])
        return Header(1 + (bits & mask), 1 + (bits >> _SIZE_BITS & mask))
    return None


def _number(content: bytes) -> int:
    return int.from_bytes(content, "little")
