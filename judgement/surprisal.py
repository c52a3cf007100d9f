"""Surprisal: -log p of a reading, continued beyond the calibration sample by a fitted tail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from askance.judgement.arrays import Doubles, Floats, Ranks, logsumexp

TAIL_SHARE = 0.05  # of the sample that a tail is fitted to
FEWEST_EXCESSES = 20  # to fit a tail to; below that there is none
EXPONENTIAL_SHAPE = 1e-3  # below which the tail counts as exponential


class Tail:
    """The upper tail of F readings: a generalized Pareto distribution of the excesses over their 95% quantiles.

    P(excess > y) = (1 + xi y / sigma)^(-1 / xi), by probability-weighted moments (J. R. M. Hosking and J. R. Wallis,
    Technometrics 1987). xi is held within [0, 0.9]: a tail never ends, so that no reading is ever impossible. With too
    few excesses, or none at all (ties), there is no tail: beyond the sample surprisal stays log(n + 1).

    Args:
        samples: clean values, sorted ascending, [F, n].

    Attributes:
        last: the greatest clean values, beyond which the tail counts, [F].
        start, shape, scale: of the distribution, float64 [F]; an infinite scale where there is none.
    """

    def __init__(self, samples: Floats) -> None:
        count = round(TAIL_SHARE * samples.shape[1])
        enough = count >= FEWEST_EXCESSES
        start = samples[:, -count - 1] if enough else samples[:, -1]
        excesses = (samples[:, -count:] - start[:, None] if enough else samples[:, :1] * 0).astype(np.float64)
        mean = excesses.mean(axis=1)
        above = np.arange(excesses.shape[1] - 1, -1, -1) / max(1, excesses.shape[1] - 1)
        weighted = (excesses * above).mean(axis=1)  # E[y (1 - F(y))]; an exponential has mean / 4
        spread = mean - 2 * weighted
        shape = 2 - np.divide(mean, spread, out=np.full_like(mean, 2.0), where=spread != 0)
        self.last = samples[:, -1]
        self.start = start.astype(np.float64)
        self.shape = shape.clip(0, 0.9)
        self.scale = np.where(mean > 0, mean * (1 - self.shape), np.inf)

    def continued(self, surprisals: Doubles, values: Floats) -> Doubles:
        """Surprisals [F, B] of values [F, B] among the sample, raised for those that lie beyond all of it."""
        rows, columns = ((values > self.last[:, None]) & np.isfinite(self.scale)[:, None]).nonzero()
        if len(rows):
            shape = self.shape[rows]
            excess = (values[rows, columns] - self.start[rows]) / self.scale[rows]
            curved = np.log1p(shape * excess) / np.maximum(shape, EXPONENTIAL_SHAPE)
            beyond = np.where(shape > EXPONENTIAL_SHAPE, curved, excess) - math.log(TAIL_SHARE)
            surprisals[rows, columns] = np.maximum(surprisals[rows, columns], beyond)
        return surprisals


class Sides(NamedTuple):
    """-log p of F readings of B inputs among the values of a table, float64 [F, B] each, in [0, inf).

    Attributes:
        above: where high is untypical.
        below: where low is.
    """

    above: Doubles
    below: Doubles


class Surprisal:
    """-log p of F readings, above and below, among the values of each of some tables.

    Args:
        tables: values, sorted ascending, float32 [F, n_t] each.
        tolerance: by how much a reading has to pass a value to be further out than it, [F], >= 0. Where many values are
            all but the same, noise would else decide whether another is among them or beyond them all.
    """

    def __init__(self, tables: Sequence[NDArray[np.float32]], tolerance: NDArray[np.float32]) -> None:
        self._ranks, self._tolerance = Ranks(tables, tolerance), tolerance[:, None]
        self._tails = [(Tail(table), Tail(-table[:, ::-1])) for table in tables]
        self._of_rank = [-np.log(np.arange(1, count + 2) / (count + 1)) for count in (len(t[0]) for t in tables)]

    def __call__(self, values: NDArray[np.float32]) -> list[Sides]:
        """[F, B] -> by table; within its values exactly the conformal p-value's."""
        above, below = values - self._tolerance, -(values + self._tolerance)
        return [
            Sides(upper.continued(of_rank[len(of_rank) - 1 - less], above), lower.continued(of_rank[at_most], below))
            for of_rank, (less, at_most), (upper, lower) in zip(
                self._of_rank, self._ranks(values), self._tails, strict=True
            )
        ]


def harmonic_mean(surprisals: Doubles) -> Doubles:
    """-log of the harmonic mean of p over F readings, from their -log p: [F, B] -> [B], in [0, inf).

    D. J. Wilson, "The harmonic mean p-value for combining dependent tests" (PNAS 2019): a few strongly untypical
    readings speak among many typical ones, which is what attacks look like: some disturb only the shallow layers,
    others only the deep. A score, to be calibrated: no distribution is claimed for it.
    """
    return logsumexp(surprisals) - math.log(len(surprisals))
