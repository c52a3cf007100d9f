"""TOML files, as people's editors write them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a file; a mark of byte order at its head is none of it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not TOML, or has numbers without end, or brackets within brackets, as no parser takes them.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise ValueError(str(error)) from None
