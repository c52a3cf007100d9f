"""Image files in a folder for each class."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from askance.calibration.images import make_images
from askance.calibration.sources.source import Pools, Source, located
from askance.errors import DataError


class Folder(Source):
    """PNG and JPEG files of one size in sub-folders, which name the classes."""

    kind: ClassVar[str] = "folder"
    spelling: ClassVar[str] = "folder:PATH"
    is_path: ClassVar[bool] = True

    @classmethod
    def load(cls, what: str) -> Pools:
        """All images, class by class; there is one pool."""
        source, root = f"folder:{what}", located(what)
        if not root.is_dir():
            raise DataError(f"{source}: there is no such folder")
        classes = tuple(
            sorted(child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
        )
        arrays, labels = [], []
        for label, name in enumerate(classes):
            for file in sorted((root / name).iterdir()):
                if file.suffix.lower() not in (".png", ".jpg", ".jpeg"):
                    continue
                try:
                    with Image.open(file) as image:
                        arrays.append(np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB")))
                except (UnidentifiedImageError, OSError):
                    raise DataError(f"{source}: {name}/{file.name} is not a readable image") from None
                if arrays[-1].shape != arrays[0].shape:
                    raise DataError(
                        f"{source}: {name}/{file.name} is {list(arrays[-1].shape)}, the first image "
                        f"{list(arrays[0].shape)}: all must have one size and colour mode"
                    )
                labels.append(label)
        if not arrays:
            raise DataError(f"{source}: no PNG or JPEG images in sub-folders, one folder per class")
        return make_images(np.stack(arrays), np.array(labels), classes, source), None
