"""Timing: two ways to do one thing, timed side by side in one run, and what their ratios say."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

Work = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """What a handful of measurements say.

    Attributes:
        median, least, greatest: of them.
    """

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Summarise at least one value."""
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g}..{self.greatest:.3g})"


@dataclass(frozen=True)
class Pairs:
    """Seconds of two ways, measured in pairs.

    Attributes:
        base: the yardstick's, [n].
        other: [n], each beside its own yardstick.
    """

    base: Sequence[float]
    other: Sequence[float]

    @property
    def ratio(self) -> Spread:
        """Other / base, pair by pair: what slows both, such as another process, cancels."""
        return Spread.of(other / base for base, other in zip(self.base, self.other, strict=True))


def interleave(base: Work, other: Work, *, pairs: int, calls: int = 1, warm_up: bool = True) -> Pairs:
    """Time `base` and `other` in turn: base, other, base, other, ...

    Args:
        base: the yardstick.
        other: what is compared.
        pairs: how many of each.
        calls: timed calls behind one measurement, which is their median.
        warm_up: whether an untimed call comes before every measurement, so that neither finds the caches as the other
            left them; else (for work that lasts seconds) only once, before the first.
    """
    if not warm_up:
        base()
        other()
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(pairs):
        for work, measured in zip((base, other), seconds, strict=True):
            if warm_up:
                work()
            measured.append(statistics.median(timed(work) for _ in range(calls)))
    return Pairs(*seconds)


def timed(work: Work) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
