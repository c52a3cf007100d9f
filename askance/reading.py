"""Reading files that people name: no further than such a file may go, so that a device is an error and not a wait."""

from __future__ import annotations

import errno
import tomllib
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 28
"""Of any file read whole: encoded images of the most pixels that are decoded take less, certificates and text too."""


def content_of(path: Path) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read, or is larger than MOST_BYTES (EFBIG).
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MOST_BYTES >> 20} MiB: it is another file")
    return content


def given(path: Path, failure: type[Exception]) -> bytes:
    """The content of a file that somebody gave; a `failure` in one line where it cannot be read, or is too large."""
    try:
        return content_of(path)
    except OSError as error:
        raise failure(f"{path} cannot be read: {error.strerror}") from None


def text_of(path: Path) -> str:
    """The text of a file, UTF-8; a mark of byte order at its head is none of it.

    Raises:
        OSError: it cannot be read, or is larger than MOST_BYTES.
        ValueError: it is not UTF-8.
    """
    return content_of(path).decode("utf-8-sig")


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file, as people's editors write it.

    Raises:
        OSError: it cannot be read, or is larger than MOST_BYTES.
        ValueError: it is not TOML, or has numbers without end, or brackets within brackets, as no parser takes them.
    """
    try:
        return tomllib.loads(text_of(path))
    except RecursionError as error:
        raise ValueError(str(error)) from None
