"""Files: a bundle's content, read no further than promised, through no link, and from plain files alone."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from askance.errors import BundleError

_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


def real_folder(path: Path) -> Path:
    """Where a bundle's folder is once links to it are followed, so that all is read from one place.

    Raises:
        BundleError: the links lead in a circle.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        raise BundleError(f"{path} cannot be found: its links lead in a circle") from None


def read_file(folder: Path, name: str, most: int) -> bytes:
    """The content of one file of a bundle.

    What is no plain file (a FIFO, a device, a socket, a folder) and what is a link is not opened, so that nothing
    hangs and nothing outside is read.

    Args:
        folder: of the bundle, as `real_folder` gives it.
        name: inside it, with slashes.
        most: bytes that it may have.

    Raises:
        FileNotFoundError: there is none.
        BundleError: it cannot be read, is larger, or is no plain file.
    """
    where, place = f"{folder}: {name}", folder
    try:
        for part in name.split("/"):
            place /= part
            if stat.S_ISLNK(place.lstat().st_mode):
                raise BundleError(f"{where} is a link: copy the bundle with its files in place of links (cp -rL)")
        _require_plain(place.lstat(), where)
        with os.fdopen(os.open(place, _FLAGS), "rb") as file:
            status = os.fstat(file.fileno())  # what was opened, whatever took the name's place meanwhile
            _require_plain(status, where)
            if status.st_size > most:
                raise BundleError(f"{where} has {status.st_size} bytes, expected at most {most}: it is another file")
            return file.read(status.st_size)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(where) from None
    except PermissionError:
        raise BundleError(
            f"{where} cannot be read (Permission denied): a bundle's files are their owner's alone, {_owner(place)}: "
            "run as that user, or give the bundle to the one that runs this (chown -R USER BUNDLE)"
        ) from None
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise BundleError(f"{where} cannot be read ({reason}): the bundle is incomplete, copy it again") from None


def _require_plain(status: os.stat_result, where: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{where} is no plain file: copy the bundle again")


def _owner(path: Path) -> str:
    try:
        return f"user {path.lstat().st_uid}"
    except OSError:
        return "whoever made it"
