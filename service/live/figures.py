"""Figures: what the live page shows, in numbers that Prometheus has, too; and how they were in the minutes before."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from prometheus_client import Metric

from askance.answers import FUSED, JUDGED
from askance.colours import CLASSES, in_words, of_scorers
from askance.service.live.bands import band
from askance.service.live.noted import Noted
from askance.service.observability.pooled import P_VALUE_BUCKETS

SAMPLE_SECONDS = 2.0
HISTORY = 450
"""How many samples are kept: a quarter of an hour."""
TRAILING_SECONDS = 60.0
"""Shares of flagged images, and times, are of so long before."""
SCREENED = tuple(verdict.value for verdict in JUDGED)

Labels = Mapping[str, str]
Families = Iterable[Metric]


class Series:
    """The samples of some metrics, by name.

    Args:
        families: as a registry collects them.
    """

    def __init__(self, families: Families) -> None:
        self._samples: dict[str, list[tuple[Labels, float]]] = {}
        for family in families:
            for sample in family.samples:
                self._samples.setdefault(sample.name, []).append((sample.labels, sample.value))

    def of(self, name: str) -> list[tuple[Labels, float]]:
        """All samples of that name."""
        return self._samples.get(name, [])

    def sum(self, name: str, **labels: str) -> float:
        """The sum of those that have these labels."""
        return sum(value for found, value in self.of(name) if labels.items() <= found.items())

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Sums by the values of some labels."""
        sums: dict[tuple[str, ...], float] = {}
        for found, value in self.of(name):
            key = tuple(found.get(label, "") for label in labels)
            sums[key] = sums.get(key, 0.0) + value
        return sums


@dataclass(frozen=True)
class _Tally:
    """How things stood at one moment: totals since the start."""

    at: float
    images: float
    flagged: Mapping[str, float]
    seconds: Mapping[float, float]
    stages: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, series: Series, levels: Iterable[str], at: float) -> _Tally:
        sums, counts = (series.by(f"askance_stage_seconds_{part}", "stage") for part in ("sum", "count"))
        answered: dict[float, float] = {}
        for labels, value in series.of("askance_request_seconds_bucket"):
            if "Screen" in labels["method"] or "Infer" in labels["method"]:  # whatever the protocol calls it
                edge = float(labels["le"])
                answered[edge] = answered.get(edge, 0.0) + value
        return cls(
            at,
            sum(series.sum("askance_verdicts_total", verdict=verdict) for verdict in SCREENED),
            {level: series.sum("askance_detector_flags_total", detector=FUSED, level=level) for level in levels},
            answered,
            {stage: (counts[(stage,)], total) for (stage,), total in sums.items()},
        )


class Figures:
    """Samples the metrics now and then, and says how things stand.

    Args:
        collect: the metrics as they are now.
        state: what the server is doing.
        clock: Unix time.
    """

    def __init__(
        self, collect: Callable[[], Families], state: Callable[[], str], clock: Callable[[], float] = time.time
    ) -> None:
        self._collect, self._state, self._clock = collect, state, clock
        self._tallies: deque[_Tally] = deque(maxlen=HISTORY)
        self._points: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._sample_on, name="askance-live", daemon=True)

    def start(self) -> None:
        """Sample from now on, on a thread, until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """End that."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def _sample_on(self) -> None:
        while not self._ending.wait(SAMPLE_SECONDS):
            self.sample()

    def sample(self) -> Series:
        """Take a sample now."""
        series = Series(self._collect())
        levels = _levels(series)
        now = _Tally.of(series, levels, self._clock())
        with self._lock:
            before = self._before()
            last = self._tallies[-1] if self._tallies else now
            self._tallies.append(now)
            calibrated = round(series.sum("askance_fusion_images"))
            self._points.append(
                {
                    "at": now.at,
                    "images_per_second": (now.images - last.images) / (now.at - last.at) if now.at > last.at else 0.0,
                    "flagged": {
                        level: _share(now, before or now, level, target, calibrated) for level, target in levels.items()
                    },
                }
            )
        return series

    def _before(self) -> _Tally | None:
        """How things stood a minute ago, or since when it is known."""
        since = self._clock() - TRAILING_SECONDS
        return next((tally for tally in self._tallies if tally.at >= since), None)

    def now(self, latest: Sequence[Noted], flagged: Sequence[Noted]) -> dict[str, Any]:
        """All that the page shows, JSON-ready.

        Args:
            latest, flagged: as of `Notes.shown`.
        """
        series = self.sample()
        levels = _levels(series)
        with self._lock:
            known = [
                point for point in self._points if point["flagged"].keys() >= levels.keys()
            ]  # once a bundle was there
            tally, before = self._tallies[-1], self._before()
        assert before is not None, "a sample was taken just now"
        names = [name for (name,) in series.by("askance_p_value_count", "detector")]
        colours = of_scorers(names)
        return {
            "at": self._clock(),
            "state": self._state(),
            "bundle": next((dict(labels) for labels, _ in series.of("askance_bundle_info")), None),
            "calibrated": series.sum("askance_bundle_calibrated_timestamp_seconds"),
            "candidate": next((dict(labels) for labels, _ in series.of("askance_candidate_info")), None),
            "levels": levels,
            "queue": series.sum("askance_queue_depth"),
            "requests": {code: n for (code,), n in series.by("askance_requests_total", "code").items() if n},
            "verdicts": {name: series.sum("askance_verdicts_total", verdict=name) for name in SCREENED},
            "unscreened": series.sum("askance_unscreened_total"),
            "blocked": series.sum("askance_blocked_total"),
            "kept": series.sum("askance_reviews_total", outcome="kept"),
            "points": known,
            "detectors": [
                {
                    "name": in_words(name),
                    "colour": colours[name],
                    "flags": {
                        level: series.sum("askance_detector_flags_total", detector=name, level=level)
                        for level in levels
                    },
                    "p_values": _in_buckets(series, name),
                }
                for name in names
            ],
            "buckets": P_VALUE_BUCKETS,
            "class_colours": CLASSES,
            "classes": [
                {
                    "name": name,
                    "predicted": n,
                    "adversarial": series.sum("askance_adversarial_predictions_total", label=name),
                }
                for (name,), n in series.by("askance_predictions_total", "label").items()
            ],
            "clients": _by_client(series),
            "stages": [
                {"name": in_words(name), "times": n, "milliseconds": _mean(now, before.stages.get(name, (0.0, 0.0)))}
                for name, now in tally.stages.items()
                if (n := now[0])
            ],
            "milliseconds": {f"p{round(100 * share)}": _quantile(tally, before, share) for share in (0.5, 0.99)},
            "latest": [{"place": one.place, "label": one.label, "verdict": one.verdict} for one in latest],
            "flagged": [asdict(one) for one in reversed(flagged)],
        }


def _levels(series: Series) -> dict[str, float]:
    return {labels["level"]: value for labels, value in series.of("askance_expected_false_positive_rate")}


def _share(now: _Tally, before: _Tally, level: str, target: float, calibrated: int) -> dict[str, float | None]:
    """Of the images of the last minute those flagged at a level, and the band that clean traffic stays in."""
    count = round(now.images - before.images)
    low, high = band(target, calibrated, count)
    flagged = now.flagged.get(level, 0.0) - before.flagged.get(level, 0.0)
    return {"share": flagged / count if count else None, "low": low, "high": high}


def _in_buckets(series: Series, detector: str) -> list[float]:
    """How many p-values of a detector lie in each bucket."""
    up_to = {
        float(labels["le"]): value
        for labels, value in series.of("askance_p_value_bucket")
        if labels["detector"] == detector
    }
    edges = [up_to.get(edge, 0.0) for edge in P_VALUE_BUCKETS]
    return [edges[0], *(after - before for before, after in pairwise(edges))]


def _by_client(series: Series) -> list[dict[str, Any]]:
    found: dict[str, dict[str, float]] = {}
    for (client, verdict), n in series.by("askance_client_verdicts_total", "client", "verdict").items():
        found.setdefault(client, {})[verdict] = n
    return [{"name": name, "verdicts": verdicts} for name, verdicts in found.items() if any(verdicts.values())]


def _mean(now: tuple[float, float], before: tuple[float, float]) -> float | None:
    """Milliseconds of one, of those of the last minute."""
    times = now[0] - before[0]
    return 1000 * (now[1] - before[1]) / times if times else None


def _quantile(now: _Tally, before: _Tally, share: float) -> float | None:
    """Milliseconds within which a share of the last minute's requests were answered, as histogram_quantile has it."""
    edges = sorted(now.seconds)
    counts = [now.seconds[edge] - before.seconds.get(edge, 0.0) for edge in edges]
    if not counts or not counts[-1]:
        return None
    wanted = share * counts[-1]
    at = next(i for i, count in enumerate(counts) if count >= wanted)
    if at == len(edges) - 1:  # beyond the greatest edge
        return 1000 * edges[at - 1]
    low, below = (edges[at - 1], counts[at - 1]) if at else (0.0, 0.0)
    return 1000 * (low + (edges[at] - low) * (wanted - below) / (counts[at] - below))
