"""Paths of a config: beside it, else under the folder that ASKANCE_DATA names."""

from __future__ import annotations

import os
from pathlib import Path


def data_root() -> Path | None:
    """The folder named by ASKANCE_DATA, or None."""
    value = os.environ.get("ASKANCE_DATA")
    return Path(value) if value else None


def find(path: Path, beside: Path) -> Path:
    """Where a path of a config leads: absolute, else beside the config if it is there, else under ASKANCE_DATA."""
    root = data_root()
    if path.is_absolute() or (beside / path).exists() or root is None or not (root / path).exists():
        return beside / path
    return root / path
