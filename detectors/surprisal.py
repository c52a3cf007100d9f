"""Surprisal: -log p of a reading, continued beyond the calibration sample by a fitted tail."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from askance.detectors.conformal import p_value

TAIL_SHARE = 0.05  # of the sample that a tail is fitted to
FEWEST_EXCESSES = 20  # to fit a tail to; below that there is none
EXPONENTIAL_SHAPE = 1e-3  # below which the tail counts as exponential


class Tail(nn.Module):
    """The upper tail of F readings: a generalized Pareto distribution of the excesses over their 95% quantiles.

    P(excess > y) = (1 + xi y / sigma)^(-1 / xi), by probability-weighted moments (J. R. M. Hosking and J. R. Wallis,
    Technometrics 1987). xi is held within [0, 0.9]: a tail never ends, so that no reading is ever impossible. With too
    few excesses, or none at all (ties), there is no tail: beyond the sample surprisal stays log(n + 1).

    Args:
        samples: clean values, sorted ascending, [F, n].
    """

    samples: Tensor
    start: Tensor
    shape: Tensor
    scale: Tensor

    def __init__(self, samples: Tensor) -> None:
        super().__init__()
        count = round(TAIL_SHARE * samples.shape[1])
        enough = count >= FEWEST_EXCESSES
        start = samples[:, -count - 1] if enough else samples[:, -1]
        excesses = (samples[:, -count:] - start.unsqueeze(1)).double() if enough else samples[:, :1].double() * 0
        mean = excesses.mean(dim=1)
        above = torch.arange(excesses.shape[1] - 1, -1, -1, device=samples.device) / max(1, excesses.shape[1] - 1)
        weighted = (excesses * above).mean(dim=1)  # E[y (1 - F(y))]; an exponential has mean / 4
        shape = (2 - mean / (mean - 2 * weighted)).nan_to_num(0.0).clamp(0, 0.9)
        scale = torch.where(mean > 0, mean * (1 - shape), torch.inf)
        self.register_buffer("samples", samples, persistent=False)
        self.register_buffer("start", start.double().unsqueeze(1), persistent=False)
        self.register_buffer("shape", shape.unsqueeze(1), persistent=False)
        self.register_buffer("scale", scale.unsqueeze(1), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """-log p of values [F, B], float64, in [0, inf): within the sample exactly the conformal p-value's."""
        within = -p_value(values, self.samples).log()
        excess = (values.double() - self.start).clamp_min(0) / self.scale
        curved = (1 + self.shape * excess).log() / self.shape.clamp_min(EXPONENTIAL_SHAPE)
        beyond = torch.where(self.shape > EXPONENTIAL_SHAPE, curved, excess) - math.log(TAIL_SHARE)
        reaches = (values > self.samples[:, -1:]) & self.scale.isfinite()
        return torch.where(reaches, torch.maximum(within, beyond), within)


class Surprisal(nn.Module):
    """-log p of F readings on the upper side, then of those among them that can be untypical either way on the lower.

    Args:
        tables: clean values, sorted ascending, [F, n].
        either_way: bool [F]; S = F + its sum surprisals come of it.
        tolerance: by how much a value has to pass a clean one to be further out than it, [F], >= 0. Where many clean
            values are all but the same, noise would else decide whether another is among them or beyond them all.
    """

    either_way: Tensor
    tolerance: Tensor

    def __init__(self, tables: Tensor, either_way: Tensor, tolerance: Tensor) -> None:
        super().__init__()
        self.upper = Tail(tables)
        self.lower = Tail(-tables[either_way].flip(1).contiguous())
        self.register_buffer("either_way", either_way, persistent=False)
        self.register_buffer("tolerance", tolerance.unsqueeze(1), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """[F, B] -> float64 [S, B], in [0, inf)."""
        below = -values[self.either_way] - self.tolerance[self.either_way]
        return torch.cat([self.upper(values - self.tolerance), self.lower(below)])


def harmonic_mean(surprisals: Tensor) -> Tensor:
    """-log of the harmonic mean of p over F readings, from their -log p: [F, B] -> [B], in [0, inf).

    D. J. Wilson, "The harmonic mean p-value for combining dependent tests" (PNAS 2019): a few strongly untypical
    readings speak among many typical ones, which is what attacks look like: some disturb only the shallow layers,
    others only the deep. A score, to be calibrated: no distribution is claimed for it.
    """
    return surprisals.logsumexp(dim=0) - math.log(surprisals.shape[0])
