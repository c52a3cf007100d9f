"""The standard streams of the command: what is told there may be told to nobody, and nothing is lost for that."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from askance.errors import NobodyReadsError, OutputError

OUTPUT, ERRORS = 1, 2


class Output(io.TextIOWrapper):
    """Standard output: what cannot be written is an error of ours, once; what comes after it is lost, too."""

    def write(self, text: str, /) -> int:
        """Raises OutputError, or NobodyReadsError where whoever read is gone."""
        with self._told():
            return super().write(text)

    def flush(self) -> None:
        """Raises the same."""
        with self._told():
            super().flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # what is left in the buffers would fail again, with a traceback, when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if isinstance(error, BrokenPipeError):
                raise NobodyReadsError("nobody reads standard output any more") from None
            reason = (error.strerror or str(error)).lower()
            raise OutputError(f"standard output cannot be written: {reason}") from None


class Errors(io.TextIOWrapper):
    """Standard error: what cannot be written is lost, and stops no work."""

    def write(self, text: str, /) -> int:
        """Never fails."""
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Never fails."""
        with suppress(OSError):
            super().flush()


def own_streams() -> None:
    """Put these in place of the process's own.

    A descriptor that is closed is taken, lest a file that is opened later gets what is meant for people; what is
    written to standard output then still fails.
    """
    for descriptor in range(ERRORS + 1):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if descriptor == ERRORS else os.O_RDONLY)  # the lowest number is taken
    sys.stdout = _in_place_of(sys.stdout, OUTPUT, Output)
    sys.stderr = _in_place_of(sys.stderr, ERRORS, Errors)


def _in_place_of(stream: TextIO | None, descriptor: int, kind: type[io.TextIOWrapper]) -> io.TextIOWrapper:
    file = open(descriptor, "wb", closefd=False)  # noqa: SIM115 (no path)
    encoding, errors = (stream.encoding, stream.errors) if stream is not None else ("utf-8", "backslashreplace")
    return kind(file, encoding, errors, line_buffering=descriptor == ERRORS or file.isatty())
