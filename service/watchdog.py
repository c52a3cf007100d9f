"""Watchdog: knows, on a thread of its own, whether the event loop and the inference thread still do anything."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

LOOKS = 4  # in the time that makes a stall
HUNG_STALLS = 4  # so many stalls long, and nobody expects it back


class Watchdog:
    """Watches from `start` to `stop`.

    What hangs cannot say so itself: `stalled` and `hung` can be read on any thread.

    Args:
        busy_seconds: how long the inference thread has been at its present batch.
        stall_seconds: how long that, or the event loop's silence, may last.
        changed: called on the event loop, once that can, when `stalled` may have changed.
    """

    def __init__(self, busy_seconds: Callable[[], float], stall_seconds: float, changed: Callable[[], None]) -> None:
        self._busy_seconds = busy_seconds
        self._limit = stall_seconds
        self._changed = changed
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._asked: float | None = None  # since when the loop has owed an answer

    def start(self) -> None:
        """Begin; call it on the event loop."""
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._watch, args=(loop,), name="askance-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()

    @property
    def stalled(self) -> bool:
        """Whether either has been at one thing for too long."""
        return self._silence() > self._limit or self._busy_seconds() > self._limit

    @property
    def hung(self) -> bool:
        """Whether that has lasted so long that only a new process will do."""
        return max(self._silence(), self._busy_seconds()) > HUNG_STALLS * self._limit

    def _silence(self) -> float:
        asked = self._asked
        return 0.0 if asked is None else time.monotonic() - asked

    def _answer(self) -> None:
        self._asked = None

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        stalled = {"event loop": False, "inference thread": False}
        while not self._stopped.wait(self._limit / LOOKS):
            if self._asked is None:
                self._asked = time.monotonic()
                if not _told(loop, self._answer):
                    return
            now = {"event loop": self._silence() > self._limit, "inference thread": self._busy_seconds() > self._limit}
            for name in (name for name, is_stalled in now.items() if is_stalled is not stalled[name]):
                said = f"is stalled: no answer for {self._limit:g} s" if now[name] else "is back"
                logger.error("the %s %s", name, said)
            if now != stalled and not _told(loop, self._changed):
                return
            stalled = now


def _told(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> bool:
    """Have the loop call something; False once it is closed."""
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        return False
    return True
