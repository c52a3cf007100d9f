"""Evidence: bets against clients being honest, which may be looked at at any time.

Sources: A. Ramdas et al., "Game-theoretic statistics and safe anytime-valid inference" (2023): the wealth of who bets
against honest questions does not grow on average. J. Shin et al., "E-detectors: a nonparametric framework for
sequential change detection" (2023): who borrows one anew whenever it has less, so that nobody is safe for having been
honest before, comes to W after no fewer than W honest questions on average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import add

from askance.service.probing.techniques import Sign, Technique


@dataclass(frozen=True)
class Odds:
    """How often an image of a client's shows a sign.

    Attributes:
        technique: of those whom it gives away.
        honest: how often to those who do not probe, at most: a camera may be out of focus, or in fog.
        bets: how often to those who do, by stake.
    """

    technique: Technique
    honest: float
    bets: tuple[float, float]


NOTHING = (0.0, 0.0)
ODDS = {
    Sign.HALVED: Odds(Technique.BISECTION, 0.000003, (0.01, 0.02)),
    Sign.TURNED: Odds(Technique.BISECTION, 0.2, (0.4, 0.5)),
    Sign.PAIRED: Odds(Technique.PAIRS, 0.01, (0.2, 0.5)),
    Sign.ELSEWHERE: Odds(Technique.SQUARES, 0.03, (0.3, 0.7)),
    Sign.FLAGGED: Odds(Technique.UNUSUAL, 0.25, (0.5, 0.9)),
}


def _gains(odds: Odds, *, shown: bool) -> tuple[float, ...]:
    if shown:
        return tuple(math.log(bet / odds.honest) for bet in odds.bets)
    return tuple(math.log((1 - bet) / (1 - odds.honest)) for bet in odds.bets)


GAINS = {
    (sign, shows): (odds.technique, _gains(odds, shown=shows)) for sign, odds in ODDS.items() for shows in (False, True)
}


class Evidence:
    """What speaks against a client, or a family of images: for each technique a bet that its signs show more often than
    they honestly may, each of its stakes borrowed anew when it is lost.
    """

    __slots__ = ("_logs",)

    def __init__(self) -> None:
        self._logs: dict[Technique, tuple[float, ...]] = {}

    def see(self, signs: Mapping[Sign, bool]) -> None:
        """Settle the bets on what one image shows.

        Args:
            signs: those that were looked for, each with whether it shows.
        """
        gains: dict[Technique, tuple[float, ...]] = {}
        for sign, shows in signs.items():
            technique, gain = GAINS[sign, shows]
            gains[technique] = tuple(map(add, gains[technique], gain)) if technique in gains else gain
        for technique, gain in gains.items():
            logs = self._logs.get(technique, NOTHING)
            self._logs[technique] = tuple([max(log, 0.0) + more for log, more in zip(logs, gain, strict=True)])

    def sure(self, wealth: float) -> list[Technique]:
        """The techniques whose bets have come to more than that, the natural logarithm."""
        return [one for one, logs in self._logs.items() if max(logs) > wealth and _log_mean_exp(logs) > wealth]

    @property
    def wealth(self) -> dict[Technique, float]:
        """What each bet has come to, all its stakes together, the natural logarithm."""
        return {technique: _log_mean_exp(logs) for technique, logs in self._logs.items()}


def _log_mean_exp(logs: Sequence[float]) -> float:
    greatest = max(logs)
    return greatest + math.log(sum(math.exp(log - greatest) for log in logs) / len(logs))
