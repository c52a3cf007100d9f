"""Bands: within what a share of flagged images lies, if clean traffic is flagged as the calibration promises."""

from __future__ import annotations

import math

import numpy as np

from askance.judgement import rank

CONFIDENCE = 0.999
"""Of a band: it is looked at again and again, so that 95% would cry wolf every minute."""


def band(level: float, calibrated: int, count: int) -> tuple[float, float]:
    """The central interval of the share of `count` clean images that a conformal table flags at a level.

    How many are flagged follows BetaBin(m, k, n + 1 - k), k = floor(level (n + 1)): binomial, but that the table is a
    sample, too (as in `calibration.metrics.flag_rate_interval`, here without scipy, which a server does not have).

    Args:
        level: the false-positive target.
        calibrated: n, the clean scores in the table.
        count: m, the images that are judged.

    Returns:
        (low, high), shares in [0, 1]; (0, 1) where there is no image.
    """
    k = rank(level, calibrated)
    if count == 0:
        return 0.0, 1.0
    if k == 0:
        return 0.0, 0.0
    a, b = float(k), float(calibrated + 1 - k)
    start = math.lgamma(count + b) + math.lgamma(a + b) - math.lgamma(count + a + b) - math.lgamma(b)  # log P(0)
    at = np.arange(count, dtype=np.float64)
    steps = np.log((count - at) / (at + 1) * (at + a) / (count - at - 1 + b))  # log P(i + 1) / P(i)
    up_to = np.cumsum(np.exp(start + np.concatenate(([0.0], np.cumsum(steps)))))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.searchsorted(up_to, (tail, 1 - tail))
    return float(low) / count, min(1.0, float(high) / count)
