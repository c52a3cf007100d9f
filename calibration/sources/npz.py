"""Arrays in an .npz file."""

from __future__ import annotations

import zipfile
import zlib
from typing import ClassVar

import numpy as np

from askance.calibration.images import make_images
from askance.calibration.progress import say
from askance.calibration.sources.source import Pools, Source, located
from askance.errors import DataError, listed, printable
from askance.screening.class_names import names_of


class Npz(Source):
    """An .npz file of x (uint8 [N, H, W] or [N, H, W, C]), y (integers [N]) and classes (K names); or of x alone."""

    kind: ClassVar[str] = "npz"
    spelling: ClassVar[str] = "npz:PATH"
    is_path: ClassVar[bool] = True

    @classmethod
    def load(cls, what: str) -> Pools:
        """All of its images; there is one pool."""
        source, file = f"npz:{what}", located(what)
        try:
            with np.load(file, allow_pickle=False) as content:
                if not isinstance(content, np.lib.npyio.NpzFile):
                    raise DataError(f"{source} holds one array: expected an .npz file with x, y and classes")
                if content.files == ["x"]:  # no labels
                    return make_images(content["x"], None, (), source), None
                missing = [key for key in ("x", "y", "classes") if key not in content]
                if missing:
                    raise DataError(f"{source} has no key {missing[0]!r}: expected x, y and classes")
                x, y, classes = content["x"], content["y"], content["classes"]
                others = [name for name in content.files if name not in ("x", "y", "classes")]
        except OSError as error:
            raise DataError(f"{source} cannot be read: {error.strerror or error}") from None
        except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, MemoryError):
            raise DataError(f"{source} is not an .npz file of plain arrays: expected x, y and classes") from None
        if classes.ndim != 1:
            raise DataError(f"{source}: classes must be a list of names, got shape {list(classes.shape)}")
        try:
            names = names_of(classes)
        except DataError as error:
            raise DataError(f"{source}: {error}") from None
        images = make_images(x, y, names, source)
        if others:
            say(f"{source}: left out: {listed([printable(name) for name in others])}; x, y and classes are read")
        return images, None
