"""Pool: metrics of how images were judged, published for many requests together, so that none can be read off."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Counter, Metric
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
        name: of the counter of its requests, which is shown to nobody; no two pools of a server share one.
    """

    def __init__(
        self,
        requests: int = POOL_REQUESTS,
        seconds: float = POOL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        name: str = "askance_pooled_requests",
    ) -> None:
        self.registry = CollectorRegistry()
        """The pooled metrics as they are; count in them inside `counting` alone."""
        self.publication = Publication(name, requests, seconds, clock)
        """What of them is shown."""
        self._counted = Counter(name, "Requests that are shown with others.", registry=self.registry)
        self._lock = threading.Lock()
        self._most = requests
        self._latest: OrderedDict[int, object] = OrderedDict()  # requests, kept so that none takes another's address

    def counting(self, request: object | None = None) -> AbstractContextManager[object]:
        """A block that counts, safe on any thread: what it counts is published together.

        Args:
            request: stands for the request that it is about, by its identity: a batch is one, so that copies of an
                image in one message are not many. None where it is about none, or about many.
        """
        return self._lock if request is None else _Counting(self, request)

    def begin(self) -> None:
        """Let nobody else count, nor look, until `end`."""
        self._lock.acquire()

    def end(self, request: object | None) -> None:
        """Let others; what was counted since `begin` is the request's, if it is about one."""
        try:
            if request is not None and id(request) not in self._latest:
                self._counted.inc()
                self._latest[id(request)] = request
                if len(self._latest) > self._most:
                    self._latest.popitem(last=False)
        finally:
            self._lock.release()

    def describe(self) -> list[Metric]:
        """The metrics' names and types."""
        return self.publication.without_count(self.registry.collect())

    def current(self) -> list[Metric]:
        """The metrics as they are now, for whoever may see single answers."""
        with self._lock:
            return self.publication.without_count(self.registry.collect())

    def collect(self) -> list[Metric]:
        """The metrics as they were when last published, which may be now."""
        with self._lock:
            return self.publication.shown(self.registry.collect())


class _Counting:
    """A block that counts for a request: not a generator's, for there is one in every request."""

    __slots__ = ("_pool", "_request")

    def __init__(self, pool: Pool, request: object) -> None:
        self._pool, self._request = pool, request

    def __enter__(self) -> None:
        self._pool.begin()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.end(self._request if kind is None else None)


class Publication:
    """What is shown of metrics that are pooled, to all who look.

    Args:
        name: of the counter of their requests.
        requests, seconds, clock: as for a Pool.
    """

    def __init__(self, name: str, requests: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._requests, self._seconds, self._clock = requests, seconds, clock
        self._lock = threading.Lock()
        self._published, self._counted = clock(), 0.0
        self._shown: dict[_Key, float] = {}

    def shown(self, families: Iterable[Metric]) -> list[Metric]:
        """The families, the counter of their requests left out, with the values that were last published, which may be
        those that they have.
        """
        now = list(families)
        counted = sum(one.value for family in now if family.name == self.name for one in family.samples[:1])
        with self._lock:
            due = counted - self._counted >= self._requests and self._clock() - self._published >= self._seconds
            if due:
                self._shown = {_key(sample): sample.value for family in now for sample in family.samples}
                self._published, self._counted = self._clock(), counted
            return [_as_shown(family, self._shown) for family in self.without_count(now)]

    def without_count(self, families: Iterable[Metric]) -> list[Metric]:
        """The families but for the counter of their requests."""
        return [family for family in families if family.name != self.name]


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
