"""WebDataset: image files in a tar archive, with the label of each beside it."""

from __future__ import annotations

import tarfile
from pathlib import PurePosixPath
from typing import ClassVar

import numpy as np

from askance.calibration.images import make_images
from askance.calibration.sources.encoded import SUFFIXES, EncodedSource, decoded
from askance.calibration.sources.source import Pools, located
from askance.detectors.class_names import names_of
from askance.detectors.preprocessing import Preprocessing
from askance.errors import DataError, printable

LABEL = ".cls"


class Tar(EncodedSource):
    """A WebDataset: a tar file of PNG, JPEG or WebP files, each with a .cls of its label (an integer), or none with."""

    kind: ClassVar[str] = "tar"
    spelling: ClassVar[str] = "tar:PATH"

    @classmethod
    def read(cls, what: str, preprocessing: Preprocessing | None) -> Pools:
        """All its images; there is one pool, of classes called 0, 1, ..."""
        return _load(what, preprocessing)


def _load(what: str, preprocessing: Preprocessing | None) -> Pools:
    source, file = f"tar:{what}", located(what)
    images: dict[str, tuple[str, bytes]] = {}
    labels: dict[str, bytes] = {}
    try:
        with tarfile.open(file) as archive:
            for member in archive:
                content = archive.extractfile(member)  # None: no file
                name = PurePosixPath(member.name)
                stem, dot, rest = name.name.partition(".")
                suffix = f".{rest.lower()}"
                if content is None or not stem or not dot:
                    continue
                sample = str(name.with_name(stem))
                if suffix in SUFFIXES:
                    images[sample] = member.name, content.read()
                elif suffix == LABEL:
                    labels[sample] = content.read()
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{source} is not a tar file, or a damaged one ({error})") from None
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror or error}") from None
    if not images:
        raise DataError(
            f"{source} holds no images: expected PNG, JPEG or WebP files, each with a {LABEL} file beside it"
        )
    arrays = np.stack(decoded(source, images.values(), preprocessing))
    if not labels:
        return make_images(arrays, None, (), source), None
    numbers = [_label(source, name, labels.get(sample)) for sample, (name, _) in images.items()]
    return make_images(arrays, np.array(numbers), names_of(range(max(numbers) + 1)), source), None


def _label(source: str, image: str, content: bytes | None) -> int:
    if content is None:
        raise DataError(
            f"{source}: {printable(image)} has no {LABEL} file beside it, others have: expected one for each"
        )
    try:
        return int(content)
    except ValueError:
        raise DataError(
            f"{source}: the {LABEL} file of {printable(image)} holds {content[:20]!r}: expected an integer"
        ) from None
