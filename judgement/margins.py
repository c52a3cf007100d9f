"""Margins: which images of a batch are judged again alone, because the last bits of their numbers decide.

The same image gives other last bits in another batch: kernels sum in another order. Nearly always that changes nothing
that anybody sees. Where it could change the class, a flag or the verdict, the image is judged once more by itself, so
that its answer is a function of the image alone: nobody's verdict depends on who sends what beside it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from askance.judgement.arrays import Bools, Doubles, Floats, FloatT
from askance.judgement.conformal import reach

NOISE = 1e-3
"""How far a reading may be off, in units of the spread of clean ones (their middle nine tenths), and a logit in units
of the largest. A batch moves them by some millionths; more is for kernels and devices that nobody has tried."""
ArrayT_co = TypeVar("ArrayT_co", bound=Floats, covariant=True)


class Bounds(NamedTuple, Generic[ArrayT_co]):
    """Numbers, and how low and how high they may be, but for noise; arrays of one shape."""

    value: ArrayT_co
    least: ArrayT_co
    most: ArrayT_co


def spread(tables: NDArray[FloatT]) -> NDArray[FloatT]:
    """How far the middle nine tenths of sorted clean values reach, [n] -> [] or [F, n] -> [F]; where most of them are
    ties, a tenth of how far all of them do.
    """
    found: NDArray[FloatT] = np.maximum(reach(tables, round(0.05 * (tables.shape[-1] - 1))), reach(tables, 0) / 10)
    return found


def around(values: NDArray[FloatT], spreads: NDArray[FloatT]) -> tuple[NDArray[FloatT], NDArray[FloatT]]:
    """The least and the most that readings may be, [B] or [F, B] by the spreads of clean ones, [] or [F]."""
    off = NOISE * (spreads[..., None] + NOISE * np.abs(values))
    return values - off, values + off


def margins(logits: Floats) -> Doubles:
    """By how much the predicted class leads the next, [B, K] -> float64 [B], >= 0."""
    two = np.partition(logits.astype(np.float64), -2, axis=1)[:, -2:]
    found: Doubles = two[:, 1] - two[:, 0]
    return found


def nudged(logits: NDArray[FloatT]) -> tuple[NDArray[FloatT], NDArray[FloatT], NDArray[FloatT]]:
    """Logits [B, K] with the predicted class's as they are, as low and as high as they may be.

    As low as the next class's at most, where the margin is least: below that another class is predicted, and leads.
    """
    every, first = np.arange(len(logits)), logits.argmax(axis=1)
    off = NOISE * np.abs(logits).max(axis=1)
    leading, others = logits[every, first], logits.copy()
    others[every, first] = -np.inf
    lowest, highest = logits.copy(), logits.copy()
    lowest[every, first] = np.maximum(leading - off, others.max(axis=1))
    highest[every, first] = leading + off
    return logits, lowest, highest


def may_change(low: Doubles, high: Doubles, levels: Collection[float]) -> Bools:
    """Whether an interval of p-values meets a level at one end and not at the other, [...] bool.

    Args:
        low, high: p-values, [...].
        levels: each met by what does not exceed it.
    """
    changes: Bools = np.logical_or.reduce([(low <= alpha) != (high <= alpha) for alpha in levels])
    return changes


def is_close(logits: Floats) -> Bools:
    """Whether two classes are as likely as each other, but for noise: logits [B, K] -> [B] bool."""
    if logits.shape[1] < 2:
        return np.zeros(len(logits), dtype=np.bool_)
    close: Bools = margins(logits) <= NOISE * np.abs(logits).max(axis=1)
    return close
