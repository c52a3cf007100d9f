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
from askance.service.probing.named import SEEN, Named, Roll
from askance.service.probing.techniques import Technique
from askance.service.probing.watch import Suspect

logger = logging.getLogger(__name__)

WAITING = 512
"""The most images that wait to be looked at; more are let go, and counted."""
WAITING_BYTES = 64 * 2**20
RESTART_SECONDS = 10.0
"""How long a process that looks must have lasted for another one to be started at once."""
THROTTLED_BURST = 1


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
        share: tells other processes of the same server of one that is named.
        clock: seconds, monotonic.

    Attributes:
        roll: those who are named.
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
        share: Callable[[Named], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._response, self._ipv6_prefix, self._share, self._clock = response, ipv6_prefix, share, clock
        self.roll = Roll(keep_seconds, clock)
        self._rate = RateLimit(throttle_rate, THROTTLED_BURST, clock, ipv6_prefix)
        self._arguments = [str(keep_seconds), str(most_bytes), str(most_alike)]
        self._known = frozenset(known)
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
        if self._response is Response.LOG or not len(self.roll):  # as nearly always
            return
        client = self._key(call)
        named = self.roll.find(client)
        if named is None or not named.feels_its_way:
            return
        if self._response is Response.BLOCK:
            raise probes()
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
            [sys.executable, "-P", "-m", lookout.__name__, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
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
        named = Named(suspect.client, suspect.technique, suspect.asked, time.time())
        self.roll.add(named)
        self._share(named)
        name = named.client if named.client in self._known else ANONYMOUS
        self._suspects.labels(name, named.technique.value).inc()
        logger.warning(
            "%s probes: %s, after %d images",
            named.client,
            SEEN[named.technique],
            named.asked,
            extra={"client": name, "technique": named.technique.value, "asked": named.asked},
        )
