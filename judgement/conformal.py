"""Conformal p-values: how unusual a score is among the scores of clean inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from askance.errors import CalibrationError
from askance.judgement.arrays import Doubles, Floats, FloatT

ROUNDING = 1e-9  # so that a product of whole numbers and shares is not just short of one
POOLED = 50.0  # images of one kind by which half of what it differs from all kinds is believed
UNEVEN = 1.5  # times as often as is promised of all changes together, that one of them may be flagged


def table(scores: NDArray[FloatT]) -> NDArray[FloatT]:
    """Return clean calibration scores [n] (or [F, n], a row per reading) sorted ascending, as `p_value` wants them.

    Raises:
        CalibrationError: no scores, or some are not finite.
    """
    if scores.shape[-1] == 0:
        raise CalibrationError("no calibration scores: expected at least one clean input")
    if not np.isfinite(scores).all():
        raise CalibrationError("a calibration score is NaN or infinite: the detector is broken on clean inputs")
    return np.sort(scores, axis=-1)


def least_favourable(clean: NDArray[FloatT], benign: Sequence[NDArray[FloatT]]) -> NDArray[FloatT]:
    """The table by which a p-value is the greatest of those by several, sorted [n] and [m_1], [m_2]... -> sorted [n].

    A clean input is flagged no oftener than by its own table, benignly changed ones no oftener than by the table of all
    changes together, and one change no more than 1.5 times as often: it may not hide behind the others. Its few images
    are shrunk towards them all: the share of them at or above a score counts m_k / (m_k + 50), that of all the rest.

    Args:
        clean: scores of clean inputs.
        benign: of each benign change.
    """
    n, pooled = len(clean), table(np.concatenate(benign))
    all_of_them = p_value(pooled, pooled)
    shares = all_of_them  # of the most suspicious change at or above each of the pooled scores, falling
    for own in benign:
        at_least = len(own) - np.searchsorted(own, pooled)
        shares = np.maximum(shares, (at_least + POOLED * all_of_them) / (len(own) + POOLED) / UNEVEN)
    above = np.arange(n, 0, -1) / (n + 1)  # share of clean at or above
    over = np.searchsorted(shares[::-1], above + ROUNDING, side="right")  # from the greatest score down
    least: NDArray[FloatT] = np.maximum(clean, pooled[::-1][over.clip(max=len(pooled) - 1)])
    return least


def reach(sorted_scores: NDArray[FloatT], cut: int) -> NDArray[FloatT]:
    """How far clean scores reach with the `cut` least and greatest left out, sorted [n] -> [], or [F, n] -> [F]."""
    found: NDArray[FloatT] = sorted_scores[..., sorted_scores.shape[-1] - 1 - cut] - sorted_scores[..., cut]
    return found


def p_value(scores: Floats, sorted_scores: Floats) -> Doubles:
    """Conformal p-value against n clean scores: p = (1 + #{s_i >= s}) / (n + 1), ties counted.

    Under exchangeability P(p <= alpha) <= alpha for a clean input (Vovk et al. 2005).

    Args:
        scores: [...], compared in the precision of the table.
        sorted_scores: ascending, [n].

    Returns:
        float64, the shape of `scores`, in [1/(n+1), 1].
    """
    n = len(sorted_scores)
    at_least = n - np.searchsorted(sorted_scores, scores.astype(sorted_scores.dtype, copy=False))
    p: Doubles = (1 + at_least) / (n + 1)
    return p


def samples_needed(alpha: float) -> int:
    """The fewest calibration samples whose smallest p-value, 1/(n+1), does not exceed `alpha`."""
    return max(1, math.ceil(1 / alpha - ROUNDING) - 1)


def check_level(alpha: float, n: int, what: str) -> None:
    """Refuse a false-positive target that n calibration samples cannot meet.

    Raises:
        CalibrationError: alpha is outside (0, 1), or below 1/(n+1).
    """
    if not 0 < alpha < 1:
        raise CalibrationError(f"the false-positive target {what} = {alpha} must lie between 0 and 1")
    if n < samples_needed(alpha):
        raise CalibrationError(
            f"the false-positive target {what} = {alpha:g} needs at least {samples_needed(alpha)} calibration samples, "
            f"got {n}: enlarge the split or raise the target"
        )


def rank(alpha: float, n: int) -> int:
    """k = floor(alpha (n+1)): of n clean scores the k-th greatest is the threshold at `alpha`; 0: there is none."""
    return math.floor(alpha * (n + 1) + ROUNDING)


def threshold(sorted_scores: Floats, alpha: float) -> float:
    """The score at and above which p <= alpha may hold: the k-th largest clean score, k = floor(alpha (n+1)).

    A score is flagged when it is greater than this value (its p-value is then at most alpha).
    """
    n = sorted_scores.shape[-1]
    check_level(alpha, n, "alpha")
    return float(sorted_scores[n - rank(alpha, n)])
