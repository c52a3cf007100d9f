"""Metrics: the server's Prometheus metrics. Every label is bounded: nothing a client sends becomes one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from askance.answers import DOUBTFUL, FUSED, JUDGED, UNFAMILIAR, Answer, Verdict
from askance.service.call import ANONYMOUS
from askance.service.errors import REASONS, Code
from askance.service.observability.candidate_metrics import CandidateMetrics
from askance.service.observability.pooled import P_VALUE_BUCKETS, POOL_REQUESTS, POOL_SECONDS, Pool, coarse
from askance.service.observability.stderr import dropped_lines
from askance.service.observability.tracing import add_stages, current_span

OTHER = "other"  # the method label of whatever is not ours
RELOADS = ("success", "unchanged", "failure")
UNSCREENED_REASONS = ("failure", "deadline")
SUSPICIONS = (UNFAMILIAR, DOUBTFUL)
"""The reasons that have series of their own: the third, manipulated, is the fused detector's."""

CODES = tuple(code for code in Code if code is not Code.UNIMPLEMENTED)
"""How a method can end."""
SECONDS_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
LAST_INFERENCE = "askance_last_inference_timestamp_seconds"
DROPPED_LINES = "askance_log_lines_dropped"
DEADLINE_MARGIN_SECONDS = 0.02  # a client sees its deadline pass that much earlier than the server may
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class BundleDescription:
    """What the metrics say of the bundle that is served.

    Attributes:
        bundle_id: SHA-256 over its content.
        classifier: the classifier's name.
        calibrated: when it was made, in Unix time.
        class_names: of the classifier.
        detectors: their names.
        levels: the false-positive targets, by name.
        engine: what computes it.
        stages: of that, by name.
        fusion_images: clean ones behind the fused p-value.
    """

    bundle_id: str
    classifier: str
    calibrated: float
    class_names: Sequence[str]
    detectors: Sequence[str]
    levels: Mapping[str, float]
    engine: str
    stages: Sequence[str]
    fusion_images: int


class Metrics:
    """The metrics of one server, in a registry of their own.

    What depends on how images were judged, and what the inference thread did with them, is shown for many requests at a
    time (see Pool).

    Args:
        max_batch: the largest batch, which bounds the buckets of batch sizes.
        methods: the names of all protocols' methods, which bound the label of that name.
        clients: the names of those that the settings know, which bound the label of that name.
        pool_requests: how many requests are shown together.
        pool_seconds: the least time between two times that some are.
    """

    def __init__(
        self,
        max_batch: int,
        methods: Sequence[str] = (),
        clients: Sequence[str] = (),
        pool_requests: int = POOL_REQUESTS,
        pool_seconds: float = POOL_SECONDS,
    ) -> None:
        self.registry = registry = CollectorRegistry()
        self._pool = Pool(pool_requests, pool_seconds)
        registry.register(self._pool)
        pooled = self._pool.registry
        self._last_inference = 0.0
        Gauge(
            LAST_INFERENCE, "When an image was last answered, in Unix time; 0 before the first.", registry=registry
        ).set_function(lambda: self._last_inference)
        self._requests = Counter(
            "askance_requests",
            "Requests answered, by method and status (in gRPC's words); each item of a stream is one.",
            ["method", "code"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "askance_request_seconds",
            "Time from a request's arrival to its answer.",
            ["method"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._rejected = Counter(
            "askance_rejected", "Requests that never reached the classifier, by reason.", ["reason"], registry=registry
        )
        self._blocked = Counter(
            "askance_blocked",
            "Predictions withheld, because the image was judged adversarial (policy block).",
            registry=pooled,
        )
        self._unscreened = Counter(
            "askance_unscreened",
            "Images that the detectors failed on or had no time for, answered with the prediction alone or an error.",
            ["reason"],
            registry=pooled,
        )
        self._verdicts = Counter("askance_verdicts", "Verdicts given.", ["verdict"], registry=pooled)
        self._client_verdicts = Counter(
            "askance_client_verdicts",
            "Verdicts given, by client: those that the settings name, and anonymous ones as one.",
            ["client", "verdict"],
            registry=pooled,
        )
        self._predictions = Counter("askance_predictions", "Classes predicted.", ["label"], registry=pooled)
        self._adversarial = Counter(
            "askance_adversarial_predictions",
            "Classes predicted for the images judged adversarial.",
            ["label"],
            registry=pooled,
        )
        self._flags = Counter(
            "askance_detector_flags",
            "Images flagged, by detector (fused: all of them together) and level.",
            ["detector", "level"],
            registry=pooled,
        )
        self._p_value = Histogram(
            "askance_p_value",
            "Conformal p-values, by detector, coarsely; uniform on clean traffic, so its shape shows drift.",
            ["detector"],
            buckets=P_VALUE_BUCKETS,
            registry=pooled,
        )
        self._reason_flags = Counter(
            "askance_reason_flags",
            "Images flagged, by reason (of manipulated ones: the detector fused) and level.",
            ["reason", "level"],
            registry=pooled,
        )
        self._reason_p_value = Histogram(
            "askance_reason_p_value",
            "Conformal p-values, by reason (of manipulated ones: the detector fused), coarsely.",
            ["reason"],
            buckets=P_VALUE_BUCKETS,
            registry=pooled,
        )
        self._stage_seconds = Histogram(
            "askance_stage_seconds",
            "Time in each stage: decode and queue per image, respond per request, the others per batch.",
            ["stage"],
            buckets=SECONDS_BUCKETS,
            registry=pooled,
        )
        self._second_looks = Counter(
            "askance_second_looks",
            "Images that a single pass found suspicious (inference.second_looks): taken, or refused by the budget.",
            ["outcome"],
            registry=pooled,
        )
        self._batch_size = Histogram(
            "askance_batch_size",
            "Images that shared one call of the classifier.",
            buckets=[size for size in BATCH_BUCKETS if size < max_batch] + [max_batch],
            registry=registry,
        )
        self._queue_depth = Gauge(
            "askance_queue_depth", "Requests accepted and not yet with the classifier.", registry=registry
        )
        self._stalled = Gauge(
            "askance_stalled",
            "1 while the inference thread, or the event loop, has been at one thing for too long.",
            registry=registry,
        )
        registry.register(_DroppedLines())
        self._bundle_info = Gauge(
            "askance_bundle_info",
            "The bundle that answers; always 1.",
            ["id", "classifier", "engine"],
            registry=registry,
        )
        self._calibrated = Gauge(
            "askance_bundle_calibrated_timestamp_seconds",
            "When the bundle that answers was calibrated, in Unix time.",
            registry=registry,
        )
        self._fusion_images = Gauge(
            "askance_fusion_images",
            "Clean images behind the fused p-value of the bundle that answers.",
            registry=registry,
        )
        self._reloads = Counter(
            "askance_bundle_reloads",
            "Attempts to replace the bundle that answers, or the candidate, by result.",
            ["result"],
            registry=registry,
        )
        self._expected = Gauge(
            "askance_expected_false_positive_rate",
            "The share of clean images that each level may flag.",
            ["level"],
            registry=registry,
        )
        candidates = Pool(pool_requests, pool_seconds, name="askance_candidate_pooled_requests")
        self.candidate = CandidateMetrics(registry, candidates)
        """Of a candidate bundle with the one that answers."""
        self.pools = self._pool, candidates
        # What is counted with every request is looked up once: `labels` takes longer than to count
        self._of_method, self._of_end = cache(self._request_seconds.labels), cache(self._requests.labels)
        self._of_stage, self._of_verdict = cache(self._stage_seconds.labels), cache(self._verdicts.labels)
        self._of_class, self._of_detector = cache(self._predictions.labels), cache(self._p_value.labels)
        self._of_reason, self._of_client = cache(self._reason_p_value.labels), cache(self._client_verdicts.labels)
        for method in methods:
            self._request_seconds.labels(method)
            for code in CODES:
                self._requests.labels(method, code.name)
        self._requests.labels(OTHER, Code.UNIMPLEMENTED.name)
        for reason in REASONS:
            self._rejected.labels(reason)
        for result in RELOADS:
            self._reloads.labels(result)
        for reason in UNSCREENED_REASONS:
            self._unscreened.labels(reason)
        for verdict in JUDGED:
            self._verdicts.labels(verdict.value)
            for client in (*clients, ANONYMOUS):
                self._client_verdicts.labels(client, verdict.value)
        for outcome in ("taken", "refused"):
            self._second_looks.labels(outcome)
        for stage in ("decode", "queue", "respond"):
            self._stage_seconds.labels(stage)

    def current(self) -> list[Metric]:
        """All of them as they are, those that are pooled, too: for whoever may see single answers."""
        pooled = [family for pool in self.pools for family in pool.current()]
        names = {family.name for family in pooled}
        return [*(family for family in self.registry.collect() if family.name not in names), *pooled]

    def serves(self, bundle: BundleDescription) -> None:
        """Show the bundle that is now served, and start its series at zero."""
        with self._pool.counting():
            for label in bundle.class_names:
                self._predictions.labels(label)
                self._adversarial.labels(label)
            for detector in (*bundle.detectors, FUSED):
                self._p_value.labels(detector)
                for level in bundle.levels:
                    self._flags.labels(detector, level)
            for stage in (*bundle.stages, FUSED):
                self._stage_seconds.labels(stage)
            for reason in SUSPICIONS:
                self._reason_p_value.labels(reason)
                for level in bundle.levels:
                    self._reason_flags.labels(reason, level)
        for level, target in bundle.levels.items():
            self._expected.labels(level).set(target)
        self._bundle_info.clear()
        self._bundle_info.labels(bundle.bundle_id, bundle.classifier, bundle.engine).set(1)
        self._calibrated.set(bundle.calibrated)
        self._fusion_images.set(bundle.fusion_images)

    def reloaded(self, result: str) -> None:
        """Count an attempt to replace the bundle, by one of RELOADS."""
        self._reloads.labels(result).inc()

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Read the queue's depth from `depth` whenever the metrics are scraped."""
        self._queue_depth.set_function(depth)

    def watch_stalls(self, stalled: Callable[[], bool]) -> None:
        """Read from `stalled`, whenever the metrics are scraped, whether something is."""
        self._stalled.set_function(lambda: float(stalled()))

    def finished(self, method: str, code: Code, reason: str | None, seconds: float) -> None:
        """Count and time one request.

        Args:
            method: its name.
            code: how it ended.
            reason: why it never reached the classifier, one of REASONS, or None.
            seconds: from its arrival.
        """
        self.failed(method, code, reason)
        self._of_method(method).observe(seconds)

    def failed(self, method: str, code: Code, reason: str | None) -> None:
        """Count what has no time of its own: a stream as a whole, beside its items, or a request refused unread."""
        self._of_end(method, code.name).inc()
        if reason is not None:
            self._rejected.labels(reason).inc()

    def broke(self, method: str) -> None:
        """Count a stream that ended with an error that is not ours."""
        self.failed(method, Code.INTERNAL, None)

    def unknown_method(self) -> None:
        """Count a call of a method that does not exist."""
        self._requests.labels(OTHER, Code.UNIMPLEMENTED.name).inc()

    def dropped(self, deadline: float | None) -> None:
        """Count a request that its client gave up before the classifier saw it."""
        self._rejected.labels("expired" if is_past(deadline) else "cancelled").inc()

    def stage(self, name: str, seconds: float) -> None:
        """Observe one stage; `screening.screen.Observe` in shape, safe to call from any thread."""
        with self._pool.counting():
            self._of_stage(name).observe(seconds)

    def timed(self, name: str) -> AbstractContextManager[None]:
        """Observe the block as one stage of the request under way, unless it raises."""
        return _Timed(self, name)

    def batch(self, size: int) -> None:
        """Observe the size of a batch."""
        self._batch_size.observe(size)

    def second_looks(self, taken: int, refused: int) -> None:
        """Count images that were looked at again, and those that the budget did not allow."""
        with self._pool.counting():
            self._second_looks.labels("taken").inc(taken)
            self._second_looks.labels("refused").inc(refused)

    def unscreened(self, reason: str) -> None:
        """Count an image that the detectors did not have their say on, by one of UNSCREENED_REASONS."""
        with self._pool.counting(request=object()):  # a server that screens none says so, too
            self._unscreened.labels(reason).inc()

    def answered(self, answer: Answer, request: object, client: str = ANONYMOUS) -> None:
        """Count one answer of a request's, by that client."""
        self._last_inference = time.time()
        with self._pool.counting(request):
            if answer.prediction is not None:
                self._of_class(answer.prediction.label).inc()
            if answer.screening is None or answer.verdict is None:
                return
            self._of_verdict(answer.verdict.value).inc()
            self._of_client(client, answer.verdict.value).inc()
            if answer.verdict is Verdict.ADVERSARIAL:
                self._adversarial.labels(answer.label).inc()
            for word in (*answer.screening.detectors, answer.screening.fused):
                self._of_detector(word.name).observe(coarse(word.p_value))
                for level in word.flags:
                    self._flags.labels(word.name, level).inc()
            for reason in answer.screening.reasons:
                if reason.name in SUSPICIONS:
                    self._of_reason(reason.name).observe(coarse(reason.p_value))
                    for level in reason.flags:
                        self._reason_flags.labels(reason.name, level).inc()

    def blocked(self) -> None:
        """Count a prediction withheld."""
        with self._pool.counting():
            self._blocked.inc()


class _Timed:
    """A block that is a stage: not a generator's, for there are several in every request."""

    __slots__ = ("_metrics", "_name", "_start")

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics, self._name = metrics, name

    def __enter__(self) -> None:
        self._start = time.perf_counter_ns()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            end = time.perf_counter_ns()
            self._metrics.stage(self._name, (end - self._start) / 1e9)
            add_stages(current_span(), [(self._name, self._start, end)])


class _DroppedLines(Collector):
    """The lines of this process's log that were never written."""

    def collect(self) -> list[Metric]:
        """Read anew: they are counted where nothing may wait."""
        text = "Lines of the log that are lost, because nobody read standard error or it could not be written."
        return [CounterMetricFamily(DROPPED_LINES, text, dropped_lines())]


def is_past(deadline: float | None) -> bool:
    """Whether a client sees its deadline, on `time.monotonic`'s clock, as passed."""
    return deadline is not None and deadline - time.monotonic() < DEADLINE_MARGIN_SECONDS
