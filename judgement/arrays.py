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
        sides = [side for table in tables for side in (table + off, table - off)]
        of_side = np.repeat(np.arange(len(sides)), [side.shape[1] for side in sides])
        # a number of the upper side counts once it is passed, one of the lower once it is met
        passes = of_side % 2 == 0
        self._length = len(of_side)
        smallest = np.uint16 if self._length < 2**16 else np.int32  # beside millions of numbers these are most of it
        self._counts = np.zeros((len(tolerance), self._length + 1, len(sides)), dtype=smallest)
        self._keys: Ints = np.empty(len(tolerance) * self._length, dtype=np.int64)
        for row, start in enumerate(self._starts):  # one by one: all of them at once take memory several times over
            keys = _key(np.concatenate([side[row] for side in sides]), start) + passes
            order = keys.argsort(kind="stable")
            self._keys[row * self._length : (row + 1) * self._length] = keys[order]
            np.cumsum(of_side[order, None] == np.arange(len(sides)), axis=0, out=self._counts[row, 1:])

    def __call__(self, values: NDArray[np.float32]) -> list[tuple[Ints, Ints]]:
        """Of each table: how many numbers of its row are less than each value, and how many at most as great, but for
        the tolerance, [F, B] -> [F, B] each.
        """
        places = np.searchsorted(self._keys, _key(values, self._starts) + 1) - self._starts * self._length
        counts = self._counts[self._starts, places].astype(np.int64)
        return [(counts[..., at], counts[..., at + 1]) for at in range(0, counts.shape[-1], 2)]


def _key(values: NDArray[np.float32], rows: Ints) -> Ints:
    bits = np.ascontiguousarray(values + np.float32(0)).view(np.int32)  # -0 and 0 are the same number
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative numbers order the other way round
    return (ordered + (rows << 32)) << 1
