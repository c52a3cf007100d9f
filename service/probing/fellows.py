"""Fellows: lookouts of several servers as one, so that who spreads over them is found, and is known to all.

What each server is asked goes into a stream in a store. Whoever of the lookouts holds a lease looks at it: from its
beginning on, so that one that takes over comes to know what the one before it knew. Whom it finds, and whom operators
let off, is another stream, which all read.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from redis import Redis, RedisError

from askance.errors import one_line
from askance.service.probing.fingerprints import Bytes
from askance.service.probing.lines import Asked, Away, Found, Known, LetOff, Options, line, read
from askance.service.probing.lookout import Alone, Say
from askance.service.probing.named import MOST_NAMED, Named
from askance.service.store import Store

BEAT_SECONDS = 0.5
LEASE_SECONDS = 5.0
LOOKED = 64  # images, at most, between two beats
THERE = Away(None)
ENTRY_BYTES = 256  # of an image in the stream, about, beside its numbers


class Fellows:
    """One of the lookouts. While the store is away it looks alone.

    Args:
        options: how to look.
        store: where they meet.
        say: is told whom it finds, and what the others say; on any thread.
    """

    def __init__(self, options: Options, store: Store, say: Say) -> None:
        self._options, self._store, self._say = options, store, say
        self._asked, self._names = store.key("asked"), store.key("named")
        self._me = uuid.uuid4().hex.encode()
        self._connection = store.connect()
        self._alone = Alone(options, say)
        self._lock = threading.Lock()
        self._state: Away | None = None
        self._stopping = threading.Event()
        try:
            self._connection.ping()
            self._is_there()
        except RedisError as error:
            self._is_away(error)
        self._leading = threading.Thread(target=self._lead_on, name="askance-lead", daemon=True)
        self._leading.start()
        threading.Thread(target=self._listen_on, name="askance-listen", daemon=True).start()

    def see(self, asked: Asked, numbers: Bytes) -> None:
        """Have an image looked at, together with what the others are asked."""
        if self._state == THERE:
            most = max(1, self._options.most_bytes // (numbers.nbytes + ENTRY_BYTES))
            try:
                self._connection.xadd(self._asked, {"asked": line(asked), "image": numbers.tobytes()}, maxlen=most)
            except RedisError as error:
                self._is_away(error)
            else:
                return
        self._alone.see(asked, numbers)

    def let_off(self, client: str) -> None:
        """Tell the others of a client that is let off here."""
        try:
            self._tell(self._connection, LetOff(client))
        except RedisError as error:
            self._is_away(error)

    def stop(self) -> None:
        """Leave, so that another one leads at once."""
        self._stopping.set()
        self._leading.join()

    def _is_there(self) -> None:
        self._stands(THERE)

    def _is_away(self, error: RedisError) -> None:
        self._stands(Away(one_line(error)))

    def _stands(self, state: Away) -> None:
        with self._lock:
            before, self._state = self._state, state
        if before is None or (before == THERE) != (state == THERE):
            self._alone = Alone(self._options, self._say)
            self._say(state)

    def _tell(self, connection: Redis, said: Found | LetOff) -> None:
        connection.xadd(self._names, {"said": line(said), "by": self._me}, maxlen=2 * MOST_NAMED)

    def _listen_on(self) -> None:
        """Say what the others say: from what they said before on, as long as that holds."""
        connection, last = self._store.connect(), None
        while not self._stopping.wait(0 if self._state == THERE else BEAT_SECONDS):
            try:
                last = last or self._oldest(connection)
                # something that is written, too: a store that is full, or a replica of another, can be read
                connection.set(self._store.key(f"lookouts:{self._me.decode()}"), 1, px=round(4000 * BEAT_SECONDS))
                self._is_there()
                for entry, fields in _entries(connection, self._names, last):
                    last = entry
                    if fields.get(b"by") != self._me:
                        self._pass_on(fields.get(b"said", b""))
            except RedisError as error:
                self._is_away(error)

    def _pass_on(self, text: bytes) -> None:
        with suppress(ValueError):  # not ours
            said = read(text)
            if isinstance(said, Found):
                self._say(Known(said.named))
            elif isinstance(said, LetOff):
                self._say(said)

    def _lead_on(self) -> None:
        """Look at what all are asked, whenever nobody else does."""
        connection = self._store.connect()
        lease = connection.lock(self._store.key("lookout"), timeout=LEASE_SECONDS, blocking=False, thread_local=False)
        while not self._stopping.wait(BEAT_SECONDS):
            with suppress(RedisError):  # which `_listen_on` tells of; or somebody else has the lease by now
                if lease.acquire():
                    for last in self._lead(connection):
                        connection.set(self._store.key("seen"), last)
                        lease.reacquire()
                    lease.release()

    def _lead(self, connection: Redis) -> Iterator[bytes]:
        """Look, until this is to end; by which entry of the stream, beat by beat."""
        looks = Alone(self._options, self._say)
        kept: Any = connection.get(self._store.key("seen"))
        seen: bytes = kept or b"0-0"
        last = b"0-0"
        while not self._stopping.is_set():
            for entry, fields in _entries(connection, self._asked, last):
                last, found = entry, _found(looks, fields)
                if _order(last) <= _order(seen):  # looked at by whoever led before, and said
                    continue
                for named in found:
                    self._say(Found(named))
                    self._tell(connection, Found(named))
            seen = max(seen, last, key=_order)
            connection.xtrim(self._asked, minid=self._oldest(connection))
            yield seen

    def _oldest(self, connection: Redis) -> bytes:
        """What is older has come to an end: an entry's name, by the store's clock."""
        seconds, microseconds = connection.time()
        return b"%d-0" % max(0, 1000 * seconds + microseconds // 1000 - round(1000 * self._options.keep_seconds))


def _entries(connection: Redis, stream: str, last: bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Those after `last`, of which there may be none after a beat."""
    read_on: Any = connection.xread({stream: last}, count=LOOKED, block=round(1000 * BEAT_SECONDS))
    return [entry for _, entries in (read_on or ()) for entry in entries]


def _found(looks: Alone, fields: dict[bytes, bytes]) -> list[Named]:
    """Whom an entry gives away; nobody by one that is not ours."""
    with suppress(ValueError):
        asked = read(fields.get(b"asked", b""))
        numbers = np.frombuffer(fields.get(b"image", b""), np.uint8)
        if isinstance(asked, Asked) and 0 < numbers.size == asked.numbers:
            return looks.found(asked, numbers)
    return []


def _order(entry: bytes) -> tuple[int, ...]:
    """What entries of a stream are ordered by."""
    return tuple(int(part) for part in entry.split(b"-"))
