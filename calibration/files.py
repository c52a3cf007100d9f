"""Files that are whole or absent."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from askance.detectors.files import SECRET


def write_atomically(path: Path, content: bytes, mode: int = SECRET) -> None:
    """Write a file so that it is whole or absent, whatever happens.

    Args:
        path: of the file.
        content: of the file.
        mode: who may read it; by default its owner alone, because fitted detectors are secret.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, staging = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(staging).chmod(mode)
        Path(staging).replace(path)
    except BaseException:
        Path(staging).unlink(missing_ok=True)
        raise
