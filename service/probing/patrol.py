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

from prometheus_client import CollectorRegistry, Counter, Gauge

from askance.service.answered import Answered
from askance.service.call import ANONYMOUS, Call
from askance.service.errors import probes
from askance.service.guard.limits import RateLimit, network_of
from askance.service.probing import lookout
from askance.service.probing.fingerprints import thinned
from askance.service.probing.lines import Asked, Away, Found, Known, LetOff, Options, line, read
from askance.service.probing.named import SEEN, Named, Roll
from askance.service.probing.techniques import Technique
from askance.service.settings import ProbingConfig, Response
from askance.service.store import Store

logger = logging.getLogger(__name__)

WAITING = 512
"""The most images that wait to be looked at; more are let go, and counted."""
WAITING_BYTES = 64 * 2**20
RESTART_SECONDS = 10.0
"""How long a process that looks must have lasted for another one to be started at once."""
THROTTLED_BURST = 1


class Patrol:
    """Looks at what was answered.

    Args:
        config: what becomes of those who probe, and how one looks for them.
        known: the names of clients that the settings know, which bound a label of the metrics.
        registry: gets the counts.
        ipv6_prefix: as for `network_of`.
        share: tells other processes of the same server of one that is named.
        store: where other servers are told, and tell; None where there are none.
        clock: seconds since 1970.

    Attributes:
        roll: those who are named.
    """

    def __init__(
        self,
        config: ProbingConfig,
        known: Collection[str],
        registry: CollectorRegistry,
        ipv6_prefix: int = 64,
        share: Callable[[Named], None] = lambda _: None,
        store: Store | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._response, self._ipv6_prefix, self._share = config.response, ipv6_prefix, share
        self.roll = Roll(config.keep_seconds, clock)
        self._rate = RateLimit(config.throttle_rate, THROTTLED_BURST, ipv6_prefix=ipv6_prefix)
        self._options = Options(config.keep_seconds, config.max_bytes, config.most_alike, store)
        self._known = frozenset(known)
        self._waiting: queue.SimpleQueue[Answered | LetOff | None] = queue.SimpleQueue()
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
        self._apart: Gauge | None = None
        if store is not None:
            self._apart = Gauge(
                "askance_replicas_apart",
                "Whether the store that servers share is away: each looks alone for who probes.",
                registry=registry,
            )
            self._apart.set(1)  # until it is told otherwise
        self._started_at = time.monotonic()
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

    def let_off(self, client: str) -> bool:
        """Let a client off, here and at the other servers; whether it was named."""
        self._waiting.put(LetOff(client))
        return self.roll.lift(client)

    def stop(self) -> None:
        """Look at what waits, and end."""
        self._waiting.put(None)
        self._writer.join()

    def _key(self, call: Call) -> str:
        return network_of(call.client, self._ipv6_prefix)

    def _start(self) -> tuple[subprocess.Popen[bytes], threading.Thread]:
        """A process that looks, and a thread that hears what it says until it ends."""
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", lookout.__name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None
        with suppress(OSError):  # as for all that it is told
            process.stdin.write(line(self._options))
            process.stdin.flush()
        reader = threading.Thread(target=self._read_on, args=(process,), name="askance-probing-found", daemon=True)
        reader.start()
        return process, reader

    def _read_on(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for text in process.stdout:
            said = read(text)
            if isinstance(said, Found):
                self._name(said.named)
            elif isinstance(said, Known):
                self.roll.add(said.named)
            elif isinstance(said, LetOff):
                self.roll.lift(said.client)
            elif isinstance(said, Away):
                self._stands_apart(said.why)

    def _write_on(self) -> None:
        while (told := self._waiting.get()) is not None:
            try:
                self._tell(told)
            except OSError:  # it has ended
                self._dropped.inc(isinstance(told, Answered))
                self._start_anew()
            finally:
                if isinstance(told, Answered):
                    with self._lock:
                        self._bytes -= told.pixels.nbytes
        self._end()

    def _tell(self, told: Answered | LetOff) -> None:
        assert self._process.stdin is not None
        if isinstance(told, LetOff):
            self._process.stdin.write(line(told))
        else:
            prediction, verdict = told.answer.prediction, told.answer.verdict
            assert prediction is not None
            assert verdict is not None
            numbers = thinned(told.pixels)
            asked = Asked(self._key(told.call), prediction.index, verdict, len(numbers))
            self._process.stdin.write(line(asked) + numbers.tobytes())
        self._process.stdin.flush()

    def _start_anew(self) -> None:
        """Start another process, unless the last one did not last: then later."""
        if time.monotonic() - self._started_at < RESTART_SECONDS:
            return
        logger.error(
            "the process that looks for who probes has ended (%s): another one takes over", self._process.poll()
        )
        self._end()
        self._started_at = time.monotonic()
        self._process, self._reader = self._start()

    def _end(self) -> None:
        """Have the process look at what it has, and end."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        self._reader.join()

    def _stands_apart(self, why: str | None) -> None:
        assert self._apart is not None
        self._apart.set(why is not None)
        if why is None:
            logger.info("the store of the replicas is there: they look together for who probes")
        else:
            logger.warning("the store of the replicas is away (%s): each looks alone for who probes", why)

    def _name(self, named: Named) -> None:
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
