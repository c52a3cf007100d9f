"""Image files in a folder for each class, decoded as a server decodes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from askance.calibration.images import make_images
from askance.calibration.progress import say
from askance.calibration.sources.source import Pools, Source, located
from askance.classifiers.images import MAX_PIXELS, ImageError, decode, shape_of
from askance.detectors.preprocessing import Preprocessing
from askance.errors import DataError, listed, printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class Folder(Source):
    """PNG, JPEG and WebP files in sub-folders, which name the classes, or all in one, without labels.

    A file that a server would refuse is refused.
    """

    kind: ClassVar[str] = "folder"
    spelling: ClassVar[str] = "folder:PATH"
    is_path: ClassVar[bool] = True

    @classmethod
    def load(cls, what: str) -> Pools:
        """All images, class by class, in the size and colours of the first; there is one pool."""
        return _load(what, None)

    @classmethod
    def load_for(cls, what: str, preprocessing: Preprocessing) -> Pools:
        """All images, class by class, as this classifier's server would take them; there is one pool."""
        return _load(what, preprocessing)


@dataclass
class _Listing:
    """What a folder holds: the image files of each class, those of none, and what is no image of a class."""

    files: dict[str, list[Path]] = field(default_factory=dict)
    flat: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, root: Path) -> _Listing:
        """Look through `root` and the folders in it, and no further."""
        found = cls()
        for child in sorted(root.iterdir()):
            if child.name.startswith(".") or not child.is_dir():
                found.left_out.append(child.name)
                if not child.name.startswith(".") and child.suffix.lower() in SUFFIXES:
                    found.flat.append(child)
                continue
            found.files[child.name] = []
            for file in sorted(child.iterdir()):
                if file.name.startswith(".") or file.is_dir() or file.suffix.lower() not in SUFFIXES:
                    found.left_out.append(f"{child.name}/{file.name}" + ("/" if file.is_dir() else ""))
                else:
                    found.files[child.name].append(file)
        return found


def _load(what: str, preprocessing: Preprocessing | None) -> Pools:
    source, root = f"folder:{what}", located(what)
    if not root.is_dir():
        raise DataError(f"{source}: there is no such folder")
    try:
        listing = _Listing.of(root)
        labelled = bool(listing.files) or not listing.flat
        if labelled:
            _refuse_empty(source, listing)
        arrays, labels = [], []
        for label, files in enumerate(listing.files.values() if labelled else [listing.flat]):
            for file in files:
                content = file.read_bytes()
                try:
                    preprocessing = preprocessing or _like(content)
                    arrays.append(_bytes_of(content, preprocessing))
                except ImageError as error:
                    raise DataError(
                        f"{source}: {printable(f'{file.parent.name}/{file.name}')}: {error}; a server refuses such an "
                        "image, too: convert it, or take it out"
                    ) from None
                labels.append(label)
    except OSError as error:
        raise DataError(
            f"{source}: {printable(str(error.filename or root))} cannot be read: {error.strerror}"
        ) from None
    if not labelled:
        say(f"{source}: {len(arrays)} images read, without labels: no sub-folders name the classes")
        return make_images(np.stack(arrays), None, (), source), None
    if listing.left_out:
        names = listed([printable(name) for name in listing.left_out])
        say(
            f"{source}: {len(arrays)} images read, {len(listing.left_out)} other entries left out ({names}): "
            "only PNG, JPEG and WebP files right in the folder of a class are images"
        )
    return make_images(np.stack(arrays), np.array(labels), tuple(listing.files), source), None


def _refuse_empty(source: str, listing: _Listing) -> None:
    if not any(listing.files.values()):
        raise DataError(f"{source}: no PNG, JPEG or WebP images in sub-folders, one folder per class")
    for name, files in listing.files.items():
        if not files:
            raise DataError(
                f"{source}: the class {printable(name)} has no image: expected PNG, JPEG or WebP files right in its "
                "folder; put some there, or take the folder out"
            )


def _like(content: bytes) -> Preprocessing:
    """What a classifier would take whose images are all like this one."""
    channels, height, width = shape_of(content, MAX_PIXELS)
    # Not validated: no classifier will take it, so that its limits are none of ours.
    return Preprocessing.model_construct(channels=channels, height=height, width=width, resize="refuse")


def _bytes_of(content: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """An encoded image as uint8 [H, W, C]; decoding leaves 8 bits a channel, so nothing is lost."""
    pixels = decode(content, preprocessing, MAX_PIXELS)
    found: NDArray[np.uint8] = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return found
