"""Pool: metrics of how images were judged, published for many requests together, so that none can be read off."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

POOL_REQUESTS = 20
"""How many requests are published together, unless the settings say otherwise."""
POOL_SECONDS = 10.0
"""The least time between two publications."""
P_VALUE_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0)
"""The levels that verdicts go by, and a coarse shape above them for drift: a finer bucket would be a finer oracle."""

_Key = tuple[str, tuple[tuple[str, str], ...]]


def coarse(p_value: float) -> float:
    """The middle of a p-value's bucket, which stands for it in the metrics: a histogram's sum then says no more than
    its buckets do.
    """
    position = bisect_left(P_VALUE_BUCKETS, p_value)
    below = P_VALUE_BUCKETS[position - 1] if position else 0.0
    return (below + P_VALUE_BUCKETS[position]) / 2


class Pool(Collector):
    """Shows its metrics as they were when last published; all of them at once, so that they fit together.

    They are published to whoever looks, once enough requests are in that nobody was shown, and enough time has passed.
    What is left when the server stops is never shown. A series starts at zero.

    Args:
        requests: the fewest that are published together.
        seconds: the least time between two publications, and before the first.
        clock: in seconds.
    """

    def __init__(
        self,
        requests: int = POOL_REQUESTS,
        seconds: float = POOL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = CollectorRegistry()
        """The pooled metrics as they are; count in them inside `counting` alone."""
        self._requests, self._seconds, self._clock = requests, seconds, clock
        self._lock = threading.Lock()
        self._waiting: set[object] = set()  # requests that nobody was shown, up to as many as are wanted
        self._published = clock()
        self._shown: dict[_Key, float] = {}

    def counting(self, request: object | None = None) -> AbstractContextManager[object]:
        """A block that counts, safe on any thread: what it counts is published together.

        Args:
            request: stands for the request that it is about, by its identity: a batch is one, so that copies of an
                image in one message are not many. None where it is about none, or about many.
        """
        return self._lock if request is None else self._counting(request)

    @contextmanager
    def _counting(self, request: object) -> Iterator[None]:
        with self._lock:
            yield
            if len(self._waiting) < self._requests:
                self._waiting.add(request)

    def describe(self) -> list[Metric]:
        """The metrics' names and types."""
        return list(self.registry.collect())

    def collect(self) -> list[Metric]:
        """The metrics as they were when last published, which may be now."""
        with self._lock:
            families = list(self.registry.collect())
            now = self._clock()
            if len(self._waiting) >= self._requests and now - self._published >= self._seconds:
                self._shown = {_key(sample): sample.value for family in families for sample in family.samples}
                self._published = now
                self._waiting.clear()
            shown = self._shown  # never altered, only replaced
        return [_as_shown(family, shown) for family in families]


def _as_shown(family: Metric, shown: Mapping[_Key, float]) -> Metric:
    made = Metric(family.name, family.documentation, family.type, family.unit)
    made.samples = [
        sample._replace(value=shown.get(_key(sample), 0.0))
        for sample in family.samples
        if not sample.name.endswith("_created")  # a time, not a count
    ]
    return made


def _key(sample: Sample) -> _Key:
    return sample.name, tuple(sorted(sample.labels.items()))
