"""Patrol: has all that is asked looked at, on a thread of its own once answers are on their way, and responds."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter

from askance.answers import Verdict
from askance.service.answered import Answered
from askance.service.call import ANONYMOUS, Call
from askance.service.errors import probes
from askance.service.guard.limits import RateLimit, network_of
from askance.service.probing.techniques import Technique
from askance.service.probing.watch import Suspect, Watch

logger = logging.getLogger(__name__)

WAITING = 512
"""The most images that wait to be looked at; more are let go, and counted."""
WAITING_BYTES = 64 * 2**20
THROTTLED_BURST = 1
SEEN = {
    Technique.BISECTION: "its images halve the way between two others",
    Technique.PAIRS: "its images come in pairs on either side of another",
    Technique.SQUARES: "its images change part after part of one",
    Technique.ALIKE: "too many of its images are nearly the same",
    Technique.UNUSUAL: "image after image is judged ADVERSARIAL",
}


class Response(StrEnum):
    """What becomes of a client that probes.

    One that is UNUSUAL alone is named, whatever the response: its images are judged one by one anyway.

    Attributes:
        OFF: nobody looks.
        LOG: it is named, in the log and the metrics.
        THROTTLE: the same, and it is answered slowly.
        BLOCK: the same, and it is not answered.
    """

    OFF = "off"
    LOG = "log"
    THROTTLE = "throttle"
    BLOCK = "block"


@dataclass(frozen=True)
class _Asked:
    client: str
    image: NDArray[np.uint8]
    label: int
    verdict: Verdict


class Patrol:
    """Looks at what was answered.

    Args:
        response: what becomes of those who probe.
        throttle_rate: images a second of one that is throttled.
        keep_seconds: how long one is remembered, and what was asked.
        most_bytes: of what was asked of late.
        most_alike: images nearly the same that honest clients ask for, all together; 0: any number.
        known: the names of clients that the settings know, which bound a label of the metrics.
        registry: gets the counts.
        ipv6_prefix: as for `network_of`.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        response: Response,
        throttle_rate: float,
        keep_seconds: float,
        most_bytes: int,
        most_alike: int,
        known: Collection[str],
        registry: CollectorRegistry,
        ipv6_prefix: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._response, self._keep_seconds, self._ipv6_prefix = response, keep_seconds, ipv6_prefix
        self._clock = clock
        self._rate = RateLimit(throttle_rate, THROTTLED_BURST, clock, ipv6_prefix)
        self._watch = Watch(keep_seconds, most_bytes, most_alike, clock)
        self._known = frozenset(known)
        self._named: dict[str, float] = {}
        self._waiting: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._bytes = 0
        self._lock = threading.Lock()
        self._suspects = Counter(
            "askance_probing_clients",
            "Clients found to probe, by how: those that the settings name, and anonymous ones as one.",
            ["client", "technique"],
            registry=registry,
        )
        for name in (*known, ANONYMOUS):
            for technique in Technique:
                self._suspects.labels(name, technique.value)
        self._dropped = Counter(
            "askance_probing_dropped",
            "Images that nobody had the time to look at for who probes.",
            registry=registry,
        )
        self._thread = threading.Thread(target=self._look_on, name="askance-probing", daemon=True)
        self._thread.start()

    def offer(self, answered: Answered) -> None:
        """Have an image looked at; returns at once."""
        prediction, verdict = answered.answer.prediction, answered.answer.verdict
        assert prediction is not None
        assert verdict is not None
        size = answered.pixels.size
        with self._lock:
            fits = self._waiting.qsize() < WAITING and self._bytes + size <= WAITING_BYTES
            if fits:
                self._bytes += size
        if not fits:
            self._dropped.inc()
            return
        image = np.rint(answered.pixels * 255).astype(np.uint8)
        self._waiting.put(_Asked(self._key(answered.call), image, prediction.index, verdict))

    def check(self, call: Call, images: int) -> None:
        """Refuse a client that probes.

        Raises:
            StatusError: PERMISSION_DENIED where such are blocked, RESOURCE_EXHAUSTED where it is too fast for one.
        """
        if not self._named or self._response is Response.LOG:
            return
        client = self._key(call)
        until = self._named.get(client)
        if until is None:
            return
        if until < self._clock():
            self._named.pop(client, None)
        elif self._response is Response.BLOCK:
            raise probes()
        else:
            self._rate.take(client, images)

    def stop(self) -> None:
        """Look at what waits, and end."""
        self._waiting.put(None)
        self._thread.join()

    def _key(self, call: Call) -> str:
        return network_of(call.client, self._ipv6_prefix)

    def _look_on(self) -> None:
        while (asked := self._waiting.get()) is not None:
            try:
                for suspect in self._watch.see(asked.client, asked.image, asked.label, asked.verdict):
                    self._name(suspect)
            except Exception:
                logger.exception("an image could not be looked at for who probes")
            finally:
                with self._lock:
                    self._bytes -= asked.image.size

    def _name(self, suspect: Suspect) -> None:
        if suspect.technique is not Technique.UNUSUAL:  # a camera out of focus feels its way nowhere
            self._named[suspect.client] = self._clock() + self._keep_seconds
        name = suspect.client if suspect.client in self._known else ANONYMOUS
        self._suspects.labels(name, suspect.technique.value).inc()
        logger.warning(
            "%s probes: %s, after %d images",
            suspect.client,
            SEEN[suspect.technique],
            suspect.asked,
            extra={"client": name, "technique": suspect.technique.value, "asked": suspect.asked},
        )
