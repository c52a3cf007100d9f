"""Arrays: the types of readings and tables, and what numpy lacks for them."""

from __future__ import annotations

from collections.abc import Sequence
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


class Ranks:
    """How many numbers of tables others pass, row by row, found by one search, however many rows and tables there are.

    Each number becomes an integer that orders as it does, its row above its bits, and below them whether its equal
    passes it: all tables are then one sorted array, and beside each place in it stands how many of each lie before.

    Args:
        tables: float32 [F, n_t] each.
        tolerance: of each row, [F], >= 0: by how much a number has to pass one of a table to count as greater or less.
    """

    def __init__(self, tables: Sequence[NDArray[np.float32]], tolerance: NDArray[np.float32]) -> None:
        self._starts = np.arange(len(tolerance), dtype=np.int64)[:, None]
        off = tolerance[:, None]
        parts = [part for table in tables for part in (self._key(table + off) + 1, self._key(table - off))]
        keys = np.concatenate(parts, axis=1)
        order = keys.argsort(axis=1, kind="stable")
        kinds = np.repeat(np.arange(len(parts)), [part.shape[1] for part in parts])[order]
        self._length = keys.shape[1]
        self._keys = np.take_along_axis(keys, order, axis=1).ravel()
        self._counts = np.zeros((len(keys), self._length + 1, len(parts)), dtype=np.int32)
        for kind in range(len(parts)):
            np.cumsum(kinds == kind, axis=1, out=self._counts[:, 1:, kind])

    def __call__(self, values: NDArray[np.float32]) -> list[tuple[Ints, Ints]]:
        """Of each table: how many numbers of its row are less than each value, and how many at most as great, but for
        the tolerance, [F, B] -> [F, B] each.
        """
        places = np.searchsorted(self._keys, self._key(values) + 1) - self._starts * self._length
        counts = self._counts[self._starts, places]
        return [(counts[..., at], counts[..., at + 1]) for at in range(0, counts.shape[-1], 2)]

    def _key(self, values: NDArray[np.float32]) -> Ints:
        bits = np.ascontiguousarray(values + np.float32(0)).view(np.int32)  # -0 and 0 are the same number
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative numbers order the other way round
        return (ordered + (self._starts << 32)) << 1
