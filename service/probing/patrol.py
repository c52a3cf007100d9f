"""Patrol: has all that is asked looked at, in a process of its own once answers are on their way, and responds."""

from __future__ import annotations

import logging
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter

from askance.service.answered import Answered
from askance.service.call import ANONYMOUS, Call
from askance.service.errors import probes
from askance.service.guard.limits import RateLimit, network_of
from askance.service.probing import lookout
from askance.service.probing.fingerprints import thinned
from askance.service.probing.techniques import Technique
from askance.service.probing.watch import Suspect

logger = logging.getLogger(__name__)

WAITING = 512
"""The most images that wait to be looked at; more are let go, and counted."""
WAITING_BYTES = 64 * 2**20
RESTART_SECONDS = 10.0
"""How long a process that looks must have lasted for another one to be started at once."""
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
        self._arguments = [str(keep_seconds), str(most_bytes), str(most_alike)]
        self._known = frozenset(known)
        self._named: dict[str, float] = {}
        self._waiting: queue.SimpleQueue[Answered | None] = queue.SimpleQueue()
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
        self._started_at = clock()
        self._process, self._reader = self._start()
        self._writer = threading.Thread(target=self._write_on, name="askance-probing", daemon=True)
        self._writer.start()

    def offer(self, answered: Answered) -> None:
        """Have an image looked at; returns at once."""
        with self._lock:
            fits = self._waiting.qsize() < WAITING and self._bytes + answered.pixels.nbytes <= WAITING_BYTES
            if fits:
                self._bytes += answered.pixels.nbytes
        if fits:
            self._waiting.put(answered)
        else:
            self._dropped.inc()

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
        self._writer.join()

    def _key(self, call: Call) -> str:
        return network_of(call.client, self._ipv6_prefix)

    def _start(self) -> tuple[subprocess.Popen[bytes], threading.Thread]:
        """A process that looks, and a thread that names whom it finds until it ends."""
        process = subprocess.Popen(
            [sys.executable, "-m", lookout.__name__, *self._arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        reader = threading.Thread(target=self._read_on, args=(process,), name="askance-probing-found", daemon=True)
        reader.start()
        return process, reader

    def _read_on(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._name(lookout.suspect_of(line))

    def _write_on(self) -> None:
        while (answered := self._waiting.get()) is not None:
            try:
                self._write(answered)
            except OSError:  # it has ended
                self._dropped.inc()
                self._start_anew()
            finally:
                with self._lock:
                    self._bytes -= answered.pixels.nbytes
        self._end()

    def _write(self, answered: Answered) -> None:
        prediction, verdict = answered.answer.prediction, answered.answer.verdict
        assert prediction is not None
        assert verdict is not None
        assert self._process.stdin is not None
        numbers = thinned(answered.pixels)
        asked = lookout.Asked(self._key(answered.call), prediction.index, verdict, len(numbers))
        self._process.stdin.write(lookout.message(asked, numbers))
        self._process.stdin.flush()

    def _start_anew(self) -> None:
        """Start another process, unless the last one did not last: then later."""
        if self._clock() - self._started_at < RESTART_SECONDS:
            return
        logger.error(
            "the process that looks for who probes has ended (%s): another one takes over", self._process.poll()
        )
        self._end()
        self._started_at = self._clock()
        self._process, self._reader = self._start()

    def _end(self) -> None:
        """Have the process look at what it has, and end."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        self._reader.join()

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
