"""Metrics of several processes as one server's: the same page as one process has, whatever the format."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_parsed
from prometheus_client.parser import text_string_to_metric_families as parsed

from askance.service.errors import Code
from askance.service.observability.metrics import BundleDescription, Metrics
from askance.service.observability.shared import SharedMetrics, merged

CLASSES, STAGES = ("ant", "bee"), ("classify",)
BUNDLE = BundleDescription("id", "tiny", 7.0, CLASSES, ("som",), {"adversarial": 0.01}, "torch", STAGES, 99)
ARGUMENTS = (8, ("Screen",))
COUNTING = """
import sys
from pathlib import Path
from askance.service.observability.shared import count_in
count_in(Path(sys.argv[1]), int(sys.argv[2]))
sys.path.insert(0, sys.argv[3])
from test_shared_metrics import ARGUMENTS, BUNDLE, count
from askance.service.observability.metrics import Metrics
import os, signal
count(Metrics(*ARGUMENTS), int(sys.argv[4]))
import prometheus_client
prometheus_client.Counter("of_a_classifier", "Somebody else's.").inc()
os.kill(os.getpid(), signal.SIGKILL)
"""


def count(metrics: Metrics, times: int) -> None:
    metrics.serves(BUNDLE)
    for number in range(times):
        metrics.finished("Screen", Code.OK, None, 0.003 * number)
        metrics.batch(1 + number % 8)
        metrics.unscreened("failure")


def counted_by_another(folder: Path, slot: int, times: int) -> None:
    """A process that counts, and is killed."""
    command = [sys.executable, "-c", COUNTING, str(folder), str(slot), str(Path(__file__).parent), str(times)]
    assert subprocess.run(command, check=False).returncode == -9


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> CollectorRegistry:
    """Of two slots, one of which two processes had."""
    folder = tmp_path_factory.mktemp("counts")
    for slot, times in ((0, 5), (1, 30), (0, 7)):
        counted_by_another(folder, slot, times)
    registry = CollectorRegistry()
    registry.register(SharedMetrics(folder, list, 20, 0.0))
    return registry


def test_what_the_dead_have_counted_counts(page: CollectorRegistry) -> None:
    assert page.get_sample_value("askance_requests_total", {"method": "Screen", "code": "OK"}) == 42
    assert page.get_sample_value("askance_request_seconds_count", {"method": "Screen"}) == 42
    assert page.get_sample_value("askance_batch_size_bucket", {"le": "1.0"}) == 1 + 4 + 1
    assert page.get_sample_value("askance_unscreened_total", {"reason": "failure"}) == 42


def test_the_page_is_that_of_one_process(page: CollectorRegistry) -> None:
    """Name by name and series by series, but for how things stand, which nobody is there to say."""
    one = Metrics(*ARGUMENTS, pool_requests=1, pool_seconds=0.0)
    count(one, 42)

    def series(registry: CollectorRegistry) -> dict[str, set[tuple[str, tuple[tuple[str, str], ...]]]]:
        return {
            f"{family.name} {family.type} {family.documentation}": {
                (sample.name, tuple(sorted(sample.labels.items())))
                for sample in family.samples
                if not sample.name.endswith("_created")  # servers have none
            }
            for family in registry.collect()
            if family.type != "gauge" and family.samples and family.name != "askance_log_lines_dropped"
        }

    assert series(page) == series(one.registry)


def test_both_formats_can_be_read(page: CollectorRegistry) -> None:
    plain = {family.name for family in parsed(generate_latest(page).decode())}
    open_text = openmetrics(page).decode()  # type: ignore[no-untyped-call]
    assert {family.name for family in openmetrics_parsed(open_text)} == plain  # type: ignore[no-untyped-call]
    assert "askance_requests" in plain


def test_one_metric_can_be_asked_for(page: CollectorRegistry) -> None:
    (family,) = page.restricted_registry(["askance_rejected_total"]).collect()
    assert family.name == "askance_rejected"


def test_how_things_stand() -> None:
    """Queues add up; what all say is said once."""

    def said(depth: float, bundle: str, dropped: float) -> list[Metric]:
        queue, info = Metric("askance_queue_depth", "", "gauge"), Metric("askance_bundle_info", "", "gauge")
        lines = Metric("askance_log_lines_dropped", "", "counter")
        queue.add_sample("askance_queue_depth", {}, depth)
        info.add_sample("askance_bundle_info", {"id": bundle}, 1.0)
        lines.add_sample("askance_log_lines_dropped_total", {}, dropped)
        return [queue, info, lines]

    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in merged([said(2, "a", 1), said(3, "a", 0), said(0, "b", 5)])
        for sample in family.samples
    }
    assert found == {
        ("askance_queue_depth",): 5,
        ("askance_bundle_info", "a"): 1,
        ("askance_bundle_info", "b"): 1,
        ("askance_log_lines_dropped_total",): 6,
    }
    assert merged([]) == []
