"""CandidateMetrics: the metrics of a candidate bundle beside the one that answers."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from askance.answers import JUDGED, Answer
from askance.errors import ScreenError
from askance.service.observability.pooled import P_VALUE_BUCKETS, Pool, coarse

OUTCOMES = ("compared", "failed", "skipped")


class CandidateMetrics:
    """Counts where a candidate's word differs from what was answered.

    Args:
        registry: gets the metrics.
        pool: a Pool of their own: a candidate sees fewer images than are answered, and theirs are to be many, too.
    """

    def __init__(self, registry: CollectorRegistry, pool: Pool) -> None:
        self._info = Gauge("askance_candidate_info", "The candidate bundle; always 1.", ["id"], registry=registry)
        self._pool = pool
        registry.register(pool)
        registry = pool.registry
        self._images = Counter(
            "askance_candidate_images",
            "Answered images, by what became of them at the candidate: compared, failed, or skipped for want of time.",
            ["outcome"],
            registry=registry,
        )
        self._verdicts = Counter(
            "askance_candidate_verdicts",
            "Images that both bundles judged, by the verdict that was answered and the candidate's.",
            ["served", "candidate"],
            registry=registry,
        )
        self._predictions = Counter(
            "askance_candidate_predictions",
            "Images that both bundles judged, by whether they predict the same class.",
            ["agreement"],
            registry=registry,
        )
        self._p_value = Histogram(
            "askance_candidate_p_value",
            "The candidate's fused p-values, coarsely; uniform on clean traffic.",
            buckets=P_VALUE_BUCKETS,
            registry=registry,
        )
        for outcome in OUTCOMES:
            self._images.labels(outcome)
        for agreement in ("same", "different"):
            self._predictions.labels(agreement)
        for served in JUDGED:
            for candidate in JUDGED:
                self._verdicts.labels(served.value, candidate.value)

    def candidate(self, bundle_id: str | None) -> None:
        """Show which bundle is the candidate, None for no more."""
        self._info.clear()
        if bundle_id is not None:
            self._info.labels(bundle_id).set(1)

    def skipped(self) -> None:
        """Count an image that the candidate had no time for; it is shown with the next ones that it had time for."""
        with self._pool.counting():
            self._images.labels("skipped").inc()

    def compared(self, answered: Answer, candidate: Answer | ScreenError, request: object) -> None:
        """Count an image of a request that was answered and screened, and what the candidate says of it."""
        with self._pool.counting(request):
            if isinstance(candidate, ScreenError) or candidate.verdict is None or candidate.p_value is None:
                self._images.labels("failed").inc()
                return
            assert answered.verdict is not None
            self._images.labels("compared").inc()
            self._verdicts.labels(answered.verdict.value, candidate.verdict.value).inc()
            self._predictions.labels("same" if answered.label == candidate.label else "different").inc()
            self._p_value.observe(coarse(candidate.p_value))
