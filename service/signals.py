"""Signals: seen on a thread of their own, whatever the main thread is at; and an end by force."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from askance.service.observability import stderr

HANGUPS = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()  # none on Windows


@contextmanager
def caught(numbers: Sequence[int], seen: Callable[[int], None]) -> Iterator[None]:
    """A block in which signals call `seen` on a thread of its own; enter and leave it on the main thread.

    Python runs a signal's handler on the main thread, between two of its steps: an event loop that hangs runs none. The
    number of the signal is written to the wakeup descriptor as it comes, in C, and whoever reads that knows.

    Inside an event loop: the loop has a wakeup descriptor of its own, which is put back at the end.
    """
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)

    def listen() -> None:
        while content := os.read(ours, 64):
            for number in content:
                if number in numbers:
                    seen(number)
        os.close(ours)

    threading.Thread(target=listen, name="askance-signals", daemon=True).start()
    before = {number: signal.signal(number, _nothing) for number in numbers}
    descriptor = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(theirs)  # which ends the thread


@contextmanager
def obeyed(stop: Callable[[], None], hurry: Callable[[], None], reload: Callable[[], None]) -> Iterator[None]:
    """A block in which SIGTERM and SIGINT call `stop`, a second of them `hurry`, and each SIGHUP `reload`.

    On a thread of its own, as for `caught`: what is to stop may hang.
    """
    asked = 0

    def on_signal(number: int) -> None:
        nonlocal asked
        if number in HANGUPS:
            reload()
            return
        asked += 1
        if asked == 1:
            stop()
        elif asked == 2:
            hurry()

    with caught((signal.SIGTERM, signal.SIGINT, *HANGUPS), on_signal):
        yield


def _nothing(number: int, frame: FrameType | None) -> None:
    """Only so that the signal is not taken by default."""


def end_after(seconds: float, since: str, first: Callable[[], None] = lambda: None) -> None:
    """End the process if it is still there then, with exit code 1: a call of the classifier that hangs is no reason to
    stay, and no thread can be interrupted.

    Args:
        seconds: from now.
        since: what happened now, for the last line of the log.
        first: called before it ends.
    """

    def end() -> None:
        first()
        stderr.last_words(f"askance: ended by force, {seconds:g} s after {since}: something in it hangs")
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
