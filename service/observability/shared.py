"""Shared: the metrics of several processes as one server's, counted in files that outlive whichever process dies."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from askance.service.observability.metrics import DROPPED_LINES, Metrics
from askance.service.observability.pooled import Publication

ADDED = ("askance_queue_depth", DROPPED_LINES)
"""Of what each process says now these are added up; of all else the greatest is shown."""
COUNTED = ("counter", "histogram")
"""The kinds of metrics that are kept in files."""


def count_in(folder: Path, slot: int) -> None:
    """Keep this process's counts in files of `folder` from now on; call it before any metric is made.

    Another process of that slot goes on where the last one ended, killed or not.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    warnings.filterwarnings("ignore", "Clearing labels")  # no gauge is read from the files, see of_now
    # as prometheus_client has it for uWSGI's workers
    values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]


def of_now(registry: CollectorRegistry) -> list[Metric]:
    """Of a process's metrics those that no file keeps: how things stand now."""
    return [family for family in registry.collect() if family.type == "gauge" or family.name == DROPPED_LINES]


class SharedMetrics(Collector):
    """The metrics of all processes, those of few requests pooled as one process's are.

    Args:
        folder: where they count.
        now: asks each process for what is `of_now`; one that does not answer is left out.
        pool_requests, pool_seconds: as for Metrics.
    """

    def __init__(
        self, folder: Path, now: Callable[[], Sequence[Sequence[Metric]]], pool_requests: int, pool_seconds: float
    ) -> None:
        self._folder = folder
        self._now = now
        self._one = Metrics(1)  # of a process that counts nothing: what there is
        self._pools = [
            (Publication(pool.publication.name, pool_requests, pool_seconds), names_of(pool.registry.collect()))
            for pool in self._one.pools
        ]
        pooled = frozenset[str]().union(*(names for _, names in self._pools))
        self._plain = names_of(self._one.registry.collect()) - pooled

    def describe(self) -> list[Metric]:
        """The metrics' names and types."""
        return list(self._one.registry.collect())

    def collect(self) -> list[Metric]:
        """All of them."""
        counted = self._counted()
        pooled = [
            publication.shown(family for family in counted if family.name in names)
            for publication, names in self._pools
        ]
        plain = [family for family in counted if family.name in self._plain]  # a classifier's own code may count, too
        return [*plain, *(family for families in pooled for family in families), *merged(self._now())]

    def current(self) -> list[Metric]:
        """All of them as they are, those that are pooled, too: for whoever may see single answers."""
        names = self._plain.union(*(names for _, names in self._pools))
        hidden = {publication.name for publication, _ in self._pools}
        counted = [family for family in self._counted() if family.name in names - hidden]
        return [*counted, *merged(self._now())]

    def _counted(self) -> list[Metric]:
        """What is kept in the files."""
        found = [file for kind in COUNTED for file in sorted(self._folder.glob(f"{kind}_*.db"))]
        files = [str(file) for file in found if file.stat().st_size]  # one that is being made holds nothing yet
        return list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]


class WorkerMetrics:
    """What the processes cannot say of themselves.

    Args:
        registry: gets the metrics.
        serving: how many of them serve.
    """

    def __init__(self, registry: CollectorRegistry, serving: Callable[[], int]) -> None:
        Gauge("askance_workers", "Processes that serve.", registry=registry).set_function(lambda: float(serving()))
        self._restarts = Counter(
            "askance_worker_restarts", "Processes that died, or hung, and were started anew.", registry=registry
        )

    def restarted(self) -> None:
        """Count one."""
        self._restarts.inc()


def names_of(families: Iterable[Metric]) -> frozenset[str]:
    """Their names."""
    return frozenset(family.name for family in families)


def merged(processes: Iterable[Iterable[Metric]]) -> list[Metric]:
    """How things stand in several processes, as one server's."""
    made: dict[str, Metric] = {}
    found: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for family in (family for families in processes for family in families):
        made.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        samples = found.setdefault(family.name, {})
        for sample in family.samples:
            key = sample.name, tuple(sample.labels.items())
            known = samples.get(key)
            both = sample.value if known is None else known + sample.value
            samples[key] = both if family.name in ADDED else max(sample.value, known or sample.value)
    for name, samples in found.items():
        for (series, labels), value in samples.items():
            made[name].add_sample(series, dict(labels), value)
    return list(made.values())
