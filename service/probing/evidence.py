"""Evidence: bets against clients being honest, which may be looked at at any time.

Sources: A. Ramdas et al., "Game-theoretic statistics and safe anytime-valid inference" (2023): the wealth of who bets
against honest questions does not grow on average. J. Shin et al., "E-detectors: a nonparametric framework for
sequential change detection" (2023): who borrows one anew whenever it has less, so that nobody is safe for having been
honest before, comes to W after no fewer than W honest questions on average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from askance.service.probing.techniques import Technique

HONEST = {
    Technique.BISECTION: 0.001,
    Technique.PAIRS: 0.01,
    Technique.SQUARES: 0.01,
    Technique.BOUNDARY: 0.25,
    Technique.UNUSUAL: 0.25,
}
"""How often an honest client's images look so, at most: a camera may be out of focus, or in fog."""
BETS = {
    Technique.BISECTION: (0.02, 0.1),
    Technique.PAIRS: (0.2, 0.5),
    Technique.SQUARES: (0.3, 0.7),
    Technique.BOUNDARY: (0.4, 0.5),
    Technique.UNUSUAL: (0.5, 0.9),
}
"""How often those of one that probes do."""


class Hits:
    """A bet that something happens more often than it honestly may.

    Args:
        honest: how often it may, at most.
        bets: how often it happens to those who probe, each with the same stake.
    """

    __slots__ = ("_gains", "_logs")

    def __init__(self, honest: float, bets: Sequence[float]) -> None:
        self._gains = [(math.log((1 - bet) / (1 - honest)), math.log(bet / honest)) for bet in bets]
        self._logs = [0.0] * len(bets)

    def see(self, *, hit: bool) -> None:
        """Settle one bet."""
        self._logs = [max(log, 0.0) + gains[hit] for log, gains in zip(self._logs, self._gains, strict=True)]

    @property
    def log_wealth(self) -> float:
        """Of all stakes together, the natural logarithm."""
        greatest = max(self._logs)
        return greatest + math.log(sum(math.exp(one - greatest) for one in self._logs) / len(self._logs))


class Evidence:
    """What speaks against a client, or a family of images, by technique."""

    __slots__ = ("_bets",)

    def __init__(self) -> None:
        self._bets: dict[Technique, Hits] = {}

    def see(self, found: Mapping[Technique, bool]) -> None:
        """Settle the bets on what one image looks like."""
        for technique, hit in found.items():
            if technique not in self._bets:
                self._bets[technique] = Hits(HONEST[technique], BETS[technique])
            self._bets[technique].see(hit=hit)

    @property
    def wealth(self) -> dict[Technique, float]:
        """What each bet has come to, the natural logarithm."""
        return {technique: hits.log_wealth for technique, hits in self._bets.items()}
