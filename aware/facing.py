"""Facing: one defence and all that was made of the victims, as figures and as the gates that these go through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from askance.aware.crafting import Crafted
from askance.aware.effort import TWICE, Effort
from askance.aware.evaluation import HEADLINE, LEVELS, MOVES, Cost, Gate, Row
from askance.calibration.rates import Rate
from askance.judgement.arrays import Bools, Doubles


@dataclass(frozen=True)
class Judged:
    """What a defence says of images made of N victims.

    Attributes:
        fooled: whether the classifier is wrong, bool [N].
        p_values: float64 [N].
    """

    fooled: Bools
    p_values: Doubles

    @classmethod
    def best(cls, several: Sequence[Judged], count: int) -> Judged:
        """Of several images made of each of so many victims the one that is wrong with the greatest p-value."""
        fooled, p_values = np.zeros(count, dtype=np.bool_), np.zeros(count)
        for one in several:
            fooled = fooled | one.fooled
            p_values = np.maximum(p_values, np.where(one.fooled, one.p_values, 0.0))
        return cls(fooled, p_values)

    def unnoticed(self, level: float = HEADLINE) -> Bools:
        """Which are wrong with a p-value above a level, bool [N]."""
        found: Bools = self.fooled & (self.p_values > level)
        return found

    def rates(self) -> dict[str, Rate]:
        """Shares of the victims, by level."""
        return {f"{level:g}": Rate.of(self.unnoticed(level)) for level in LEVELS}


@dataclass(frozen=True)
class Faced:
    """One defence, faced with all that was made within one budget.

    Attributes:
        own: what was made against it, as it says itself.
        direct: the same, as the Screen judges it.
        transferred: what was made against the other defences.
        oblivious: what was made without knowing any.
        distances: L2, of the images made against it; and of those that stop at the first wrong answer, [N] each.
        stopped: which of the latter the classifier is wrong about, [N].
        stolen: what was made against another bundle's fused score; None where nothing was.
    """

    own: Crafted
    direct: Judged
    transferred: Judged
    oblivious: Judged
    distances: tuple[Doubles, Doubles]
    stopped: Bools
    stolen: Judged | None = None

    @property
    def _others(self) -> Judged:
        """What was made against other defences."""
        every = [self.transferred] if self.stolen is None else [self.transferred, self.stolen]
        return Judged.best(every, len(self.stopped))

    @property
    def aware(self) -> Judged:
        """The worst case: of each victim the image that passes best."""
        return Judged.best([self.direct, self._others, self.oblivious], len(self.stopped))

    def row(self, name: str, epsilon: float, effort: Effort, before: float | None, at_half: Bools) -> Row:
        """The figures, if they have converged.

        Args:
            name: of the defence.
            epsilon: the budget.
            effort: of the attackers.
            before: the share that went unnoticed within the next smaller budget; None: there is none.
            at_half: which of some victims go unnoticed within half the range of a pixel.
        """
        aware = self.aware
        gates = self._gates(effort, before, at_half)
        converged = all(gate.holds for gate in gates.values())
        return Row(
            defence=name,
            epsilon=epsilon,
            victims=len(aware.fooled),
            fooled=Rate.of(aware.fooled),
            oblivious=self.oblivious.rates(),
            aware=aware.rates() if converged else None,
            cost=self._cost() if converged else None,
            stolen=None if self.stolen is None else self.stolen.rates(),
            gates=gates,
        )

    def _gates(self, effort: Effort, before: float | None, at_half: Bools) -> Mapping[str, Gate]:
        share, direct, others = (float(one.unnoticed().mean()) for one in (self.aware, self.direct, self._others))
        in_the_end = self.own.evaded_at >= 0
        in_time = in_the_end & (self.own.evaded_at <= effort.all_steps)
        sooner, later = float(in_time.mean()), float(in_the_end.mean())
        gates = {
            "steps": Gate(holds=later - sooner < MOVES, why=f"{sooner:.1%}, with {TWICE} {later:.1%}"),
            "direct": Gate(holds=direct + MOVES > others, why=f"{direct:.1%}, made against others {others:.1%}"),
            "half": Gate(
                holds=bool(at_half.all()), why=f"{at_half.mean():.1%} of {len(at_half)} within half the range"
            ),
        }
        if before is not None:
            why = f"{share:.1%}, within the next smaller budget {before:.1%}"
            gates["budget"] = Gate(holds=share + MOVES > before, why=why)
        return gates

    def _cost(self) -> Cost | None:
        evading = self.own.evaded_at >= 0
        both = evading & self.stopped
        if not both.any():
            return None
        ours, theirs = self.distances
        return Cost(
            steps=float(np.median(self.own.evaded_at[evading]) / np.median(self.own.fooled_at[evading])),
            distance=float(np.median(ours[both]) / np.median(theirs[both])),
        )
