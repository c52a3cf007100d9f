"""How well scores separate attacked from clean inputs, and how sure that figure is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import betabinom
from torch import Tensor

from askance.judgement.conformal import rank

FALSE_POSITIVE_RATES = (0.05, 0.01, 0.001)
FIGURES = ("auroc", "aupr", *(f"tpr_at_fpr_{rate:g}" for rate in FALSE_POSITIVE_RATES))
RESAMPLES = 500
CONFIDENCE = 0.95
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Scores = Tensor | Floats  # on the CPU


def detection(clean: Scores, attacked: Scores) -> dict[str, float] | None:
    """AUROC, AUPR (attacked as positives) and TPR at 5%, 1% and 0.1% FPR, each in [0, 1].

    Args:
        clean: scores of clean inputs [n], higher = more suspicious.
        attacked: scores of attacked inputs [m].

    Returns:
        {figure: value} with the keys of FIGURES, or None when there is nothing to compare.
    """
    if len(clean) == 0 or len(attacked) == 0:
        return None
    figures = _weighted(*_ordered(clean, attacked), np.ones((1, len(clean))), np.ones((1, len(attacked))))
    return {name: float(values[0]) for name, values in figures.items()}


def detection_intervals(clean: Scores, attacked: Scores, seed: int = 0) -> dict[str, tuple[float, float]] | None:
    """95% bootstrap intervals (percentiles) of the figures of `detection`: clean and attacked resampled apart.

    Returns:
        {figure: (low, high)}, or None when there is nothing to compare.
    """
    if len(clean) == 0 or len(attacked) == 0:
        return None
    draws = _draws(len(clean), seed), _draws(len(attacked), seed + 1)
    tail = 100 * (1 - CONFIDENCE) / 2
    bounds = {}
    for name, values in _weighted(*_ordered(clean, attacked), *draws).items():
        low, high = np.percentile(values, [tail, 100 - tail])
        bounds[name] = (float(low), float(high))
    return bounds


class Separation(NamedTuple):
    """AUROC of scores, and its 95% interval, each in [0, 1]."""

    auroc: float
    low: float
    high: float

    @property
    def in_words(self) -> str:
        """For people: 0.84 (0.78 to 0.89)."""
        return f"{self.auroc:.2f} ({self.low:.2f} to {self.high:.2f})"


def separation(clean: Scores, attacked: Scores) -> Separation:
    """How well scores tell the attacked from the clean, of which there are some each; as for `detection`."""
    figures, intervals = detection(clean, attacked), detection_intervals(clean, attacked)
    assert figures is not None
    assert intervals is not None
    return Separation(figures["auroc"], *intervals["auroc"])


@lru_cache(maxsize=16)
def _draws(count: int, seed: int) -> Floats:
    """How often each of `count` samples is drawn in each resample, [RESAMPLES, count]."""
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return drawn.astype(np.float64)


def _ordered(clean: Scores, attacked: Scores) -> tuple[Floats, Floats]:
    return np.asarray(clean, dtype=np.float64), np.asarray(attacked, dtype=np.float64)


def _weighted(clean: Floats, attacked: Floats, clean_weights: Floats, attacked_weights: Floats) -> dict[str, Floats]:
    """The figures for R weightings of the samples at once: a walk down the thresholds, ties taken together.

    Args:
        clean, attacked: scores [n] and [m].
        clean_weights, attacked_weights: [R, n] and [R, m], each row summing to n and m.
    """
    thresholds, where = np.unique(np.concatenate([clean, attacked]), return_inverse=True)
    groups = len(thresholds)

    def cumulated(weights: Floats, positions: np.ndarray[tuple[int, ...], np.dtype[np.intp]]) -> Floats:
        """Share of the weight at or above each threshold, from the highest down, a 0 first, [R, groups + 1]."""
        order = np.argsort(-positions, kind="stable")
        ends = np.searchsorted(-positions[order], -np.arange(groups - 1, -1, -1), side="right")
        running = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights[:, order], axis=1)], axis=1)
        shares: Floats = np.concatenate([np.zeros((len(weights), 1)), running[:, ends]], axis=1)
        return shares / weights.shape[1]

    false_positive = cumulated(clean_weights, where[: len(clean)])
    true_positive = cumulated(attacked_weights, where[len(clean) :])
    positives = true_positive * len(attacked)
    flagged = positives + false_positive * len(clean)
    precision = np.divide(positives, flagged, out=np.zeros_like(positives), where=flagged > 0)
    figures: dict[str, Floats] = {
        "auroc": np.asarray(np.trapezoid(true_positive, false_positive, axis=1)),
        "aupr": (np.diff(true_positive, axis=1) * precision[:, 1:]).sum(axis=1),
    }
    for rate in FALSE_POSITIVE_RATES:
        allowed = false_positive <= rate + 1e-12
        figures[f"tpr_at_fpr_{rate:g}"] = np.where(allowed, true_positive, 0).max(axis=1)
    return figures


def flag_rate_interval(level: float, calibrated: int, count: int) -> tuple[float, float]:
    """The central 95% interval of the share of `count` clean inputs that a conformal table flags at a level.

    How many are flagged follows BetaBin(m, k, n + 1 - k), k = floor(level (n + 1)), whatever the scores' distribution,
    as long as they have no ties: the table itself is a sample, and its k-th greatest score has chance in it too. A
    binomial interval leaves that out, and is a third too narrow where n = m.

    Args:
        level: the false-positive target.
        calibrated: n, the clean scores in the table.
        count: m, the clean inputs that are judged.

    Returns:
        (low, high), shares in [0, 1]; (0, 0) for a level that a table of that size never flags at.
    """
    k = rank(level, calibrated)
    if k == 0:
        return 0.0, 0.0
    low, high = betabinom.interval(CONFIDENCE, count, k, calibrated + 1 - k)
    return float(low) / count, float(high) / count


def worst_case(scores: Mapping[str, Tensor], succeeded: Mapping[str, Tensor], count: int) -> Tensor:
    """Each image's least score over all attacks that succeeded on it (Granese et al. 2022, MEAD).

    Args:
        scores: {attack: [N_a]}, of the first N_a of the same images.
        succeeded: {attack: bool [N_a]}.
        count: how many images, from the first on, are looked at; an attack that met fewer counts on those.

    Returns:
        Scores [M] of the images that at least one attack succeeded on.
    """
    least = np.full(count, np.inf)
    for attack, values in scores.items():
        found = succeeded[attack].numpy()[:count]
        rows = np.flatnonzero(found)
        least[rows] = np.minimum(least[rows], values.double().numpy()[:count][found])
    return torch.from_numpy(least[np.isfinite(least)])
