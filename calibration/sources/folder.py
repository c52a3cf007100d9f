"""Image files in a folder for each class, decoded as a server decodes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from askance.calibration.images import make_images
from askance.calibration.progress import say
from askance.calibration.sources.encoded import SUFFIXES, EncodedSource, decoded, say_left_out
from askance.calibration.sources.source import Pools, located
from askance.errors import DataError, printable
from askance.screening.preprocessing import Preprocessing


class Folder(EncodedSource):
    """PNG, JPEG and WebP files in sub-folders, which name the classes, or all in one, without labels.

    A file that a server would refuse is refused.
    """

    kind: ClassVar[str] = "folder"
    spelling: ClassVar[str] = "folder:PATH"

    @classmethod
    def read(cls, what: str, preprocessing: Preprocessing | None) -> Pools:
        """All images, class by class; there is one pool."""
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
            if not child.name.startswith(".") and child.is_dir():
                files = found.files[child.name] = []
                for file in sorted(child.iterdir()):
                    if _is_image(file):
                        files.append(file)
                    else:
                        found.left_out.append(f"{child.name}/{file.name}" + ("/" if file.is_dir() else ""))
            elif _is_image(child):
                found.flat.append(child)
            else:
                found.left_out.append(child.name)
        if found.files:
            found.left_out = sorted([*found.left_out, *(file.name for file in found.flat)])
        return found


def _is_image(path: Path) -> bool:
    """Whether it is to be read as an image; a pipe or a device would be read for ever, a dead link is an error."""
    seen = not path.name.startswith(".") and path.suffix.lower() in SUFFIXES
    return seen and (path.is_file() or not path.exists())


def _load(what: str, preprocessing: Preprocessing | None) -> Pools:
    source, root = f"folder:{what}", located(what)
    if not root.is_dir():
        raise DataError(f"{source}: there is no such folder")
    try:
        listing = _Listing.of(root)
        labelled = bool(listing.files) or not listing.flat
        if labelled:
            _refuse_empty(source, listing)
        files = listing.files if labelled else {"": listing.flat}
        arrays = decoded(source, _contents(files), preprocessing)
    except OSError as error:
        raise DataError(
            f"{source}: {printable(str(error.filename or root))} cannot be read: {error.strerror}"
        ) from None
    if not labelled:
        say(f"{source}: {len(arrays)} images read, without labels: no sub-folders name the classes")
    where = "folder of a class" if labelled else "folder"
    rule = f"PNG, JPEG and WebP files right in the {where} are images"
    say_left_out(source, len(arrays), listing.left_out, rule)
    if not labelled:
        return make_images(np.stack(arrays), None, (), source), None
    labels = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files.values()])
    return make_images(np.stack(arrays), labels, tuple(files), source), None


def _contents(files: Mapping[str, Sequence[Path]]) -> Iterator[tuple[str, bytes]]:
    for name, of_class in files.items():
        for file in of_class:
            yield f"{name}/{file.name}" if name else file.name, file.read_bytes()


def _refuse_empty(source: str, listing: _Listing) -> None:
    if not any(listing.files.values()):
        raise DataError(f"{source}: no PNG, JPEG or WebP images in sub-folders, one folder per class")
    for name, files in listing.files.items():
        if not files:
            raise DataError(
                f"{source}: the class {printable(name)} has no image: expected PNG, JPEG or WebP files right in its "
                "folder; put some there, or take the folder out"
            )
