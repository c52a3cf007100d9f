"""Keeper: puts flagged requests, and some that are not, into the store, on a thread of its own; no request waits."""

from __future__ import annotations

import logging
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter

from askance.answers import Verdict
from askance.explained import in_words
from askance.service.answered import Answered
from askance.service.review.store import Kept, ReviewStore, encoded

logger = logging.getLogger(__name__)

WAITING = 64
"""The most requests that wait to be written; more are let go, and counted."""
WAITING_BYTES = 64 * 2**20
OUTCOMES = ("kept", "dropped", "failed")


@dataclass(frozen=True)
class _Offered:
    at: float
    answered: Answered
    why: str

    @property
    def size(self) -> int:
        return len(self.answered.file or b"") + self.answered.pixels.nbytes


class Keeper:
    """Keeps requests for review.

    Args:
        store: where they go.
        clean_share: of the requests that are not flagged, drawn by chance.
        registry: gets the count of what was kept.
        draw: a number in [0, 1), anew at each call.
    """

    def __init__(
        self,
        store: ReviewStore,
        clean_share: float,
        registry: CollectorRegistry,
        draw: Callable[[], float] = lambda: secrets.randbelow(2**32) / 2**32,
    ) -> None:
        self._store, self._clean_share, self._draw = store, clean_share, draw
        self._waiting: queue.SimpleQueue[_Offered | None] = queue.SimpleQueue()
        self._count = self._bytes = 0
        self._lock = threading.Lock()
        self._outcomes = Counter(
            "askance_reviews",
            "Requests for review: kept, dropped because too many came at a time, or failed to be written.",
            ["outcome"],
            registry=registry,
        )
        for outcome in OUTCOMES:
            self._outcomes.labels(outcome)
        self._thread = threading.Thread(target=self._write_on, name="askance-review", daemon=True)
        self._thread.start()

    def offer(self, answered: Answered) -> None:
        """Have an image kept, if it is one to keep; returns at once."""
        flagged = answered.answer.verdict is not Verdict.CLEAN
        if not flagged and self._draw() >= self._clean_share:
            return
        offered = _Offered(time.time(), answered, "flagged" if flagged else "sample")
        with self._lock:
            fits = self._count < WAITING and self._bytes + offered.size <= WAITING_BYTES
            if fits:
                self._count, self._bytes = self._count + 1, self._bytes + offered.size
        if fits:
            self._waiting.put(offered)
        else:
            self._outcomes.labels("dropped").inc()

    def stop(self) -> None:
        """Write what waits, and end."""
        self._waiting.put(None)
        self._thread.join()
        self._store.close()

    def _write_on(self) -> None:
        while (offered := self._waiting.get()) is not None:
            try:
                self._write(offered)
            except (sqlite3.Error, OSError) as error:
                self._outcomes.labels("failed").inc()
                logger.error("a request could not be kept for review: %s", error)
            except Exception:
                self._outcomes.labels("failed").inc()
                logger.exception("a request could not be kept for review")
            else:
                self._outcomes.labels("kept").inc()
            finally:
                with self._lock:
                    self._count, self._bytes = self._count - 1, self._bytes - offered.size

    def _write(self, offered: _Offered) -> None:
        answered = offered.answered
        answer, call = answered.answer.explained(), answered.call
        prediction, screening, verdict = answer.prediction, answer.screening, answer.verdict
        assert prediction is not None
        assert screening is not None
        assert verdict is not None
        media, content = encoded(answered.file, answered.pixels)
        kept = Kept(
            f"{time.time_ns():016x}-{secrets.token_hex(4)}",
            offered.at,
            call.identity.name,
            call.address,
            call.request_id,
            answer.bundle_id,
            prediction.label,
            prediction.probability,
            verdict.value,
            screening.fused.p_value,
            tuple(in_words(answer, answered.class_names)),
            offered.why,
            media,
            len(content),
        )
        self._store.keep(kept, content)
