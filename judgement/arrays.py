"""Arrays: the types of readings and tables, and what numpy lacks for them."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

FloatT = TypeVar("FloatT", bound=np.floating[Any])
Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def logsumexp(values: Doubles) -> Doubles:
    """log(sum(exp(values))) over the first axis, [F, B] -> [B]; values are finite, or less than infinity."""
    greatest = values.max(axis=0)
    found: Doubles = np.log(np.exp(values - greatest).sum(axis=0)) + greatest
    return found


class SortedRows:
    """F sorted rows, in which values are ranked by one search, however many rows there are.

    Each number becomes an integer that orders as it does, with its row above its bits: the rows are then one sorted
    array, and a search in it costs what one in a single row does.

    Args:
        rows: float32 [F, n], each ascending.
    """

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self.length = rows.shape[1]
        self._starts = np.arange(len(rows), dtype=np.int64)[:, None]
        self._keys = self._key(rows, self._starts).ravel()

    def less(self, values: NDArray[np.float32], rows: NDArray[np.intp] | slice = slice(None)) -> Ints:
        """How many numbers of its row are less than each value, [S, B] for S of the rows -> [S, B]."""
        return self._count(values, rows, "left")

    def at_most(self, values: NDArray[np.float32], rows: NDArray[np.intp] | slice = slice(None)) -> Ints:
        """The same of those that are at most as great."""
        return self._count(values, rows, "right")

    def _count(self, values: NDArray[np.float32], rows: NDArray[np.intp] | slice, side: Any) -> Ints:
        starts = self._starts[rows]
        found: Ints = np.searchsorted(self._keys, self._key(values, starts), side) - starts * self.length
        return found

    @staticmethod
    def _key(values: NDArray[np.float32], starts: Ints) -> Ints:
        bits = np.ascontiguousarray(values + np.float32(0)).view(np.int32)  # -0 and 0 are the same number
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative numbers order the other way round
        return ordered + (starts << 32)
