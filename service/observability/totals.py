"""Totals: what a server has done so far, added up from its metrics."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from prometheus_client import Metric

from askance.service.observability.metrics import CODES, LAST_INFERENCE


class Totals:
    """Sums over metrics.

    Args:
        families: the metrics, as a registry collects them.
        inferences: the methods that have images screened.
    """

    def __init__(self, families: Iterable[Metric], inferences: Collection[str]) -> None:
        self._inferences = inferences
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def _value(self, name: str, **labels: str) -> float:
        return self._values.get((name, frozenset(labels.items())), 0.0)

    @property
    def last_inference(self) -> float:
        """When an image was last answered, in Unix time; 0 before the first."""
        return self._value(LAST_INFERENCE)

    def batches(self) -> tuple[int, int]:
        """Calls of the classifier so far, and the images in them."""
        return round(self._value("askance_batch_size_count")), round(self._value("askance_batch_size_sum"))

    def stages(self, *names: str) -> tuple[float, float]:
        """How often the first of some stages was observed, and the seconds of all of them together."""
        seconds = sum(self._value("askance_stage_seconds_sum", stage=name) for name in names)
        return self._value("askance_stage_seconds_count", stage=names[0]), seconds

    def inferences(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Requests to screen so far, those answered and those failed: each their count, and their seconds.

        Times are not kept by outcome: they are shared out by count.
        """
        counts = [
            sum(self._value("askance_requests_total", method=method, code=code.name) for method in self._inferences)
            for code in CODES
        ]
        seconds = sum(self._value("askance_request_seconds_sum", method=method) for method in self._inferences)
        answered, total = counts[0], sum(counts)
        share = answered / total if total else 0.0
        return (answered, seconds * share), (total - answered, seconds * (1 - share))
