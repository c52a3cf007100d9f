"""Conformal p-values: how unusual a score is among the scores of clean inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from askance.errors import CalibrationError

ROUNDING = 1e-9  # so that a product of whole numbers and shares is not just short of one
POOLED = 50.0  # images of one kind by which half of what it differs from all kinds is believed
UNEVEN = 1.5  # times as often as is promised of all changes together, that one of them may be flagged


def table(scores: Tensor) -> Tensor:
    """Return clean calibration scores [n] (or [F, n], a row per reading) sorted ascending, as `p_value` wants them.

    Raises:
        CalibrationError: no scores, or some are not finite.
    """
    if scores.shape[-1] == 0:
        raise CalibrationError("no calibration scores: expected at least one clean input")
    if not bool(torch.isfinite(scores).all()):
        raise CalibrationError("a calibration score is NaN or infinite: the detector is broken on clean inputs")
    return scores.sort(dim=-1).values.contiguous()


def least_favourable(clean: Tensor, benign: Sequence[Tensor]) -> Tensor:
    """The table by which a p-value is the greatest of those by several, sorted [n] and [m_1], [m_2]... -> sorted [n].

    A clean input is flagged no oftener than by its own table, benignly changed ones no oftener than by the table of all
    changes together, and one change no more than 1.5 times as often: it may not hide behind the others. Its few images
    are shrunk towards them all: the share of them at or above a score counts m_k / (m_k + 50), that of all the rest.

    Args:
        clean: scores of clean inputs.
        benign: of each benign change.
    """
    n, pooled = clean.shape[0], table(torch.cat([*benign]))
    all_of_them = p_value(pooled, pooled)
    shares = all_of_them  # of the most suspicious change at or above each of the pooled scores, falling
    for own in benign:
        at_least = len(own) - torch.searchsorted(own, pooled, right=False)
        shares = torch.maximum(shares, (at_least + POOLED * all_of_them) / (len(own) + POOLED) / UNEVEN)
    above = torch.arange(n, 0, -1, dtype=torch.float64, device=clean.device) / (n + 1)  # share of clean at or above
    over = torch.searchsorted(shares.flip(0), above + ROUNDING, right=True)  # from the greatest score down
    return torch.maximum(clean, pooled.flip(0)[over.clamp(max=len(pooled) - 1)])


def reach(sorted_scores: Tensor, cut: int) -> Tensor:
    """How far clean scores reach with the `cut` least and greatest left out, sorted [n] -> [], or [F, n] -> [F]."""
    return sorted_scores[..., sorted_scores.shape[-1] - 1 - cut] - sorted_scores[..., cut]


def yardstick(values: Tensor, points: int = 1000) -> Tensor:
    """Evenly spaced quantiles of clean values, [n] -> [points] or [F, n] -> [F, points], sorted: a `p_value` table.

    A detector keeps them of its own readings to put them on one scale; they promise no false-positive rate.
    """
    ordered = values.sort(dim=-1).values
    grid = torch.linspace(0, 1, points, dtype=values.dtype)
    return ordered[..., (grid * (ordered.shape[-1] - 1)).round().long()].contiguous()


def p_value(scores: Tensor, sorted_scores: Tensor) -> Tensor:
    """Conformal p-value against n clean scores: p = (1 + #{s_i >= s}) / (n + 1), ties counted.

    Under exchangeability P(p <= alpha) <= alpha for a clean input (Vovk et al. 2005; science.md, section 6).

    Args:
        scores: [B], or [F, B] with one table row each.
        sorted_scores: ascending, [n] or [F, n].

    Returns:
        float64, the shape of `scores`, in [1/(n+1), 1].
    """
    n = sorted_scores.shape[-1]
    at_least = n - torch.searchsorted(sorted_scores, scores.contiguous(), right=False)
    return (1 + at_least).double() / (n + 1)


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


def threshold(sorted_scores: Tensor, alpha: float) -> float:
    """The score at and above which p <= alpha may hold: the k-th largest clean score, k = floor(alpha (n+1)).

    A score is flagged when it is greater than this value (its p-value is then at most alpha).
    """
    n = sorted_scores.shape[-1]
    check_level(alpha, n, "alpha")
    return float(sorted_scores[n - rank(alpha, n)])
