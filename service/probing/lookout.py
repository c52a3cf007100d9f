"""Lookout: a process of its own that looks for who probes, so that no answer waits for Python's one thread at a time.

`python -m askance.service.probing.lookout` reads `lines` of stdin: `Options`, then for each image an `Asked` with its
numbers behind it, or a `LetOff`; it writes lines to stdout, a `Found` for each client that it finds, and whatever other
servers say. It ends with its stdin.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import BinaryIO, Protocol

import numpy as np

from askance.service.probing.fingerprints import Bytes
from askance.service.probing.lines import Asked, Found, LetOff, Options, Said, line, read
from askance.service.probing.named import Named
from askance.service.probing.watch import Watch

NICE = 10  # answers come first
Say = Callable[[Said], None]


class Looks(Protocol):
    """What looks at images."""

    def see(self, asked: Asked, numbers: Bytes) -> None:
        """Look at one, or have it looked at."""

    def let_off(self, client: str) -> None:
        """Tell others of a client that is let off."""

    def stop(self) -> None:
        """End."""


class Alone:
    """Looks at what one server is asked.

    Args:
        options: how.
        say: is told whom it finds.
    """

    def __init__(self, options: Options, say: Say) -> None:
        self._watch = Watch(options.keep_seconds, options.most_bytes, options.most_alike)
        self._say = say

    def see(self, asked: Asked, numbers: Bytes) -> None:
        """Look at an image."""
        for named in self.found(asked, numbers):
            self._say(Found(named))

    def found(self, asked: Asked, numbers: Bytes) -> list[Named]:
        """Whom an image gives away."""
        suspects = self._watch.see(asked.client, numbers, asked.label, asked.verdict)
        return [Named(**asdict(one), at=time.time()) for one in suspects]

    def let_off(self, client: str) -> None:
        """There is nobody to tell."""

    def stop(self) -> None:
        """Nothing is to be ended."""


def main(told: BinaryIO, says: BinaryIO) -> None:
    """Look at what is asked until there is no more."""
    options = read(told.readline())
    assert isinstance(options, Options)
    lock = threading.Lock()

    def say(said: Said) -> None:
        with lock:
            says.write(line(said))
            says.flush()

    looks = _looks(options, say)
    for text in told:
        said = read(text)
        if isinstance(said, Asked):
            looks.see(said, np.frombuffer(told.read(said.numbers), np.uint8))
        elif isinstance(said, LetOff):
            looks.let_off(said.client)
    looks.stop()


def _looks(options: Options, say: Say) -> Looks:
    if options.store is None:
        return Alone(options, say)
    from askance.service.probing.fellows import Fellows  # needs redis, as a server alone does not

    return Fellows(options, options.store, say)


if __name__ == "__main__":
    for ending in (signal.SIGINT, signal.SIGTERM):  # which go to the server, too: it closes stdin once it is done
        signal.signal(ending, signal.SIG_IGN)
    os.nice(NICE)
    main(sys.stdin.buffer, sys.stdout.buffer)
