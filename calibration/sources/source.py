"""The contract of a data source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from askance.calibration.images import Images
from askance.calibration.paths import data_root
from askance.errors import DataError
from askance.screening.preprocessing import Preprocessing

Pools = tuple[Images, Images | None]
"""The images of the pool `train`, and those of the pool `test` where the source has such."""


class Source(ABC):
    """Where images come from: a config spells it `kind:what`."""

    kind: ClassVar[str]
    """What stands before the colon."""
    spelling: ClassVar[str]
    """How it is written, for people: "npz:PATH"."""
    is_path: ClassVar[bool] = False
    """Whether what stands after the colon is a path: beside the config, or under ASKANCE_DATA."""

    @classmethod
    @abstractmethod
    def load(cls, what: str) -> Pools:
        """Load what stands after the colon.

        Raises:
            DataError: it is unknown, missing or invalid; one line that says which.
        """

    @classmethod
    def load_for(cls, what: str, preprocessing: Preprocessing) -> Pools:  # noqa: ARG003
        """The same for a classifier; a source of encoded images decodes them to what it takes, as its server does.

        Raises:
            DataError: as for `load`, and an image that such a server refuses.
        """
        return cls.load(what)


def located(path: str) -> Path:
    """Where a source's path leads: where it says, else under ASKANCE_DATA.

    Raises:
        DataError: to a device, a pipe or a socket, which may be read for ever.
    """
    root = data_root()
    found = Path(path) if root is None or Path(path).exists() else root / path
    if found.exists() and not (found.is_file() or found.is_dir()):
        raise DataError(f"{found} is neither a plain file nor a folder: expected images to be kept in one")
    return found
