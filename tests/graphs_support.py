"""Commands of tests make no graphs, which take them seconds, but where a test asks for them."""

from __future__ import annotations

import os
from pathlib import Path

GRAPHLESS = str(Path(__file__).resolve().parent / "graphless")
"""A folder whose onnxscript says that there is none: a calibration then makes no graphs."""


def without_graphs() -> str:
    """PYTHONPATH of commands that make none."""
    return os.pathsep.join([GRAPHLESS, *_others()])


def with_graphs() -> str:
    """PYTHONPATH of commands that make some, as they do for everybody."""
    return os.pathsep.join(_others())


def _others() -> list[str]:
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [path for path in folders if path and path != GRAPHLESS]
