"""Writing files: whole or not at all; where that fails, one line says what, why, and what to do."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from askance.errors import FileError

SECRET = 0o600
"""For what its owner alone may read: fitted detectors tell an attacker what they look at."""
PUBLIC = 0o644
"""For what anyone may read."""
_ROOM = "make room there"
_ELSEWHERE = "choose a place that can be written"
REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
}
"""What to do, by what went wrong: what may happen to any file that is written."""
OTHER_TEMPORARY = "make room there, or let TMPDIR name another folder"


def cannot_write(what: str | Path, error: OSError, remedy: str | None = None) -> FileError:
    """The one line."""
    if isinstance(error, shutil.Error):  # of many files
        return FileError(f"cannot write {what}: {error.args[0][0][2]}")
    remedy = REMEDIES.get(error.errno or 0) if remedy is None else remedy
    return FileError(f"cannot write {what}: {error.strerror or error}" + (f": {remedy}" if remedy else ""))


@contextmanager
def writing(what: str | Path, remedy: str | None = None) -> Iterator[None]:
    """A block that writes `what`, and does nothing else with files.

    Args:
        what: for people.
        remedy: what to do where it fails; None goes by the kind of failure.

    Raises:
        FileError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(what, error, remedy) from None


@contextmanager
def reserved(path: Path, size: int, mode: int = PUBLIC) -> Iterator[Callable[[bytes], None]]:
    """Keep room for a file of about `size` bytes while the block works out its content: what to call with it.

    The file is there, whole, once that returns; whatever was there before stays until then, and if it is never called.

    Args:
        path: of the file.
        size: bytes.
        mode: who may read it.

    Raises:
        FileError: it cannot be written; at once, where that is known at once.
    """
    with writing(path):
        target = path.resolve()  # a link stays one
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        staging = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        file = os.fdopen(os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")

    def write(content: bytes) -> None:
        with writing(path):
            file.write(content)
            file.truncate()
            file.close()
            staging.replace(target)

    try:
        with writing(path):
            _reserve(file.fileno(), size)
        yield write
    finally:
        staging.unlink(missing_ok=True)  # gone already where all went well
        with suppress(OSError):  # what could not be written still cannot
            file.close()


def _reserve(descriptor: int, size: int) -> None:
    if size == 0 or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot
            raise


def write_whole(path: Path, content: bytes, mode: int = PUBLIC) -> None:
    """Write a file so that it is whole or as it was before; a device or a pipe is simply written to.

    Raises:
        FileError: it cannot be written.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        with writing(path):
            path.write_bytes(content)
        return
    with reserved(path, len(content), mode) as write:
        write(content)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone after the block.

    Raises:
        FileError: there is no place for one.
    """
    with writing("temporary files", OTHER_TEMPORARY):
        folder = tempfile.TemporaryDirectory(prefix="askance-")
    with folder as name:
        yield Path(name)
