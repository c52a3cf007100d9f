"""Standard error that keeps nobody waiting: lines go through a bounded queue to a thread that writes them."""

from __future__ import annotations

import io
import logging
import os
import select
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue

logger = logging.getLogger(__name__)

MOST_WAITING = 4096  # lines; one more is dropped, and counted
FLUSH_SECONDS = 2.0  # that a process which ends waits for its last lines to be read
LAST_SECONDS = 0.5  # the same for one that ends by force
POLL_MS = 1000  # between two looks whether a pipe that nobody reads is read again


class QueuedStream(io.TextIOBase):
    """A text stream in place of `sys.stderr`: `write` never waits, a daemon thread does.

    Safe in every thread, and where a write interrupts another.

    Args:
        descriptor: where the thread writes to.
        most: how many lines may wait.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int, most: int = MOST_WAITING) -> None:
        self._descriptor = descriptor
        self._most = most
        self._waiting: SimpleQueue[str | threading.Event] = SimpleQueue()
        self._counting = threading.RLock()
        self.dropped = 0
        """Lines that were never written: nobody read, or the disk was full."""
        self._told = 0
        threading.Thread(target=self._work, name="askance-log", daemon=True).start()

    def writable(self) -> bool:
        """True."""
        return True

    def fileno(self) -> int:
        """The descriptor behind it."""
        return self._descriptor

    def write(self, text: str) -> int:
        """Queue the text, or drop and count it where too much waits."""
        if self._waiting.qsize() < self._most:
            self._waiting.put(text)
        else:
            self._drop(text)
        return len(text)

    def drained(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Wait until what is queued now has been written, for `seconds` at most; whether it has."""
        done = threading.Event()
        self._waiting.put(done)
        return done.wait(seconds)

    def _work(self) -> None:
        while True:
            item = self._waiting.get()
            if isinstance(item, threading.Event):
                item.set()
            elif not self._written(item.encode(self.encoding, self.errors)):
                self._drop(item)
            elif self._waiting.empty() and self.dropped > self._told:
                lost, self._told = self.dropped - self._told, self.dropped
                logger.warning("%d lines of this log are lost: standard error could not be written", lost)

    def _written(self, content: bytes) -> bool:
        while content:
            try:
                content = content[os.write(self._descriptor, content) :]
            except BlockingIOError:
                waiter = select.poll()
                waiter.register(self._descriptor, select.POLLOUT)
                waiter.poll(POLL_MS)
            except OSError:  # a full disk, or whoever read is gone
                return False
        return True

    def _drop(self, text: str) -> None:
        with self._counting:
            self.dropped += text.count("\n")


_streams: list[QueuedStream] = []


def dropped_lines() -> int:
    """How many lines of this process's log were never written."""
    return sum(stream.dropped for stream in _streams)


def last_words(line: str) -> None:
    """Write a line of a process that is about to end by force; if nobody reads it, it is lost."""
    print(line, file=sys.stderr)  # noqa: T201
    for stream in _streams:
        stream.drained(LAST_SECONDS)


@contextmanager
def unblocked() -> Iterator[None]:
    """A block in which nothing that writes to standard error waits for whoever reads it.

    Python's own writers (the log, warnings, tracebacks, print) get a QueuedStream, so that what is lost is counted. C
    code writes to the descriptor itself, which no longer blocks: what does not fit is lost.
    """
    before, descriptor = sys.stderr, 2
    with suppress(OSError, AttributeError):
        before.flush()
    _never_block(descriptor)
    stream = QueuedStream(descriptor)
    _streams.append(stream)
    sys.stderr = stream
    try:
        yield
    finally:
        stream.drained()
        sys.stderr = before


def _never_block(descriptor: int) -> None:
    """Let writes to a descriptor fail rather than wait.

    Others may share it, such as the shell whose terminal it is: it is opened anew, for this process alone, where it
    can be.
    """
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:  # closed: what is opened next would be taken for it
        mode, null = stat.S_IFREG, os.open(os.devnull, os.O_WRONLY)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)
    if stat.S_ISREG(mode):  # never waits; opened anew it would begin at its start
        return
    try:
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # a socket, another user's, or no /proc
        if not stat.S_ISCHR(mode):
            os.set_blocking(descriptor, False)
        return
    os.dup2(own, descriptor)
    os.close(own)
