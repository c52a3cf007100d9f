"""WebDataset: image files in a tar archive, with the label of each beside it."""

from __future__ import annotations

import re
import tarfile
import zlib
from pathlib import PurePosixPath
from typing import ClassVar

import numpy as np

from askance.calibration.images import make_images
from askance.calibration.sources.encoded import SUFFIXES, EncodedSource, decoded, numbered, say_left_out
from askance.calibration.sources.source import Pools, located
from askance.errors import DataError, one_line, printable
from askance.screening.preprocessing import Preprocessing

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
    left_out: list[str] = []
    try:
        with tarfile.open(file) as archive:
            for member in archive:
                if member.isdir():
                    continue
                content = archive.extractfile(member)  # None: no file
                name = PurePosixPath(member.name)
                stem, _, rest = name.name.partition(".")
                suffix = f".{rest.lower()}"
                if content is None or not stem or suffix not in (*SUFFIXES, LABEL):
                    left_out.append(member.name)
                    continue
                sample = str(name.with_name(stem))
                if suffix == LABEL:
                    labels[sample] = content.read()
                elif sample in images:
                    both = f"{printable(images[sample][0])} and {printable(member.name)}"
                    raise DataError(f"{source}: {both} are images of one sample: expected one for each name")
                else:
                    images[sample] = member.name, content.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{source} is not a tar file, or a damaged one ({one_line(error)})") from None
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror or error}") from None
    if not images:
        raise DataError(
            f"{source} holds no images: expected PNG, JPEG or WebP files, each with a {LABEL} file beside it"
        )
    arrays = np.stack(decoded(source, images.values(), preprocessing))
    left_out += [f"{sample}{LABEL}" for sample in labels if sample not in images]
    rule = f"NAME.png, .jpg, .jpeg and .webp are images, and NAME{LABEL} beside one its label"
    say_left_out(source, len(images), left_out, rule)
    if not labels:
        return make_images(arrays, None, (), source), None
    numbers = [_label(source, name, labels.get(sample)) for sample, (name, _) in images.items()]
    return make_images(arrays, *numbered(numbers, source), source), None


def _label(source: str, image: str, content: bytes | None) -> int:
    if content is None:
        raise DataError(
            f"{source}: {printable(image)} has no {LABEL} file beside it, others have: expected one for each"
        )
    if re.fullmatch(rb"\s*-?\d{1,18}\s*", content):
        return int(content)
    raise DataError(f"{source}: the {LABEL} file of {printable(image)} holds {content[:20]!r}: expected an integer")
