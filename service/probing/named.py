"""Named: the clients that were found to probe, until they are let off."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from askance.service.probing.techniques import Technique

SEEN = {
    Technique.BISECTION: "its images halve the way between two others",
    Technique.PAIRS: "its images come in pairs on either side of another",
    Technique.SQUARES: "its images change part after part of one",
    Technique.ALIKE: "too many of its images are nearly the same",
    Technique.UNUSUAL: "image after image is judged ADVERSARIAL",
}
MOST_NAMED = 10_000  # the longest ago are let off


@dataclass(frozen=True)
class Named:
    """A client that probes.

    Attributes:
        client: its name, or an anonymous one's address.
        technique: what gave it away.
        asked: by how many images.
        at: when, seconds since 1970.
    """

    client: str
    technique: Technique
    asked: int
    at: float

    @property
    def feels_its_way(self) -> bool:
        """Whether it is one to refuse; a camera out of focus is not, and its images are judged one by one anyway."""
        return self.technique is not Technique.UNUSUAL

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"seen": SEEN[self.technique]}


class Roll:
    """Those who are named; any thread may ask.

    Args:
        keep_seconds: after which one is let off.
        clock: seconds since 1970.
    """

    def __init__(self, keep_seconds: float, clock: Callable[[], float] = time.time) -> None:
        self._keep_seconds, self._clock = keep_seconds, clock
        self._lock = threading.Lock()
        self._named: OrderedDict[str, Named] = OrderedDict()

    def __len__(self) -> int:
        return len(self._named)

    def add(self, named: Named) -> None:
        """Put a client on it, or keep it on; what it is refused for is not forgotten for something less."""
        with self._lock:
            known = self._named.pop(named.client, None)
            if known is not None and known.feels_its_way and not named.feels_its_way:
                named = replace(known, at=named.at)
            self._named[named.client] = named
            while len(self._named) > MOST_NAMED:
                self._named.popitem(last=False)

    def find(self, client: str) -> Named | None:
        """What a client is named for; None where it is not, or no longer."""
        if client not in self._named:  # as all but few
            return None
        with self._lock:
            named = self._named.get(client)
            if named is not None and self._is_over(named):
                del self._named[client]
                return None
            return named

    def listed(self) -> list[Named]:
        """All of them, the latest first."""
        with self._lock:
            return [named for named in reversed(self._named.values()) if not self._is_over(named)]

    def lift(self, client: str) -> bool:
        """Let one off; whether it was on it."""
        with self._lock:
            return self._named.pop(client, None) is not None

    def _is_over(self, named: Named) -> bool:
        return named.at + self._keep_seconds < self._clock()
