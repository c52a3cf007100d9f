"""The figures of an aware evaluation: how often attackers who know a defence evade it, and whether to believe that."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from askance.calibration.rates import Rate

LEVELS = (0.01, 0.05, 0.5)  # p-values above which an image that fools the classifier counts as unnoticed
HEADLINE = 0.05  # of these the one that gates go by
MOVES = 0.02  # by which a figure that has converged may move


class Part(BaseModel):
    """Never changed, and nothing in it that has no name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def in_words(rates: Mapping[str, Rate]) -> str:
    """Shares by level, for people: 1.00 0.96 0.55."""
    return " ".join(f"{rate.share:.2f}" for rate in rates.values())


class Gate(Part):
    """A condition without which a figure says more of the attack than of the defence.

    Attributes:
        holds: whether it is met.
        why: what was compared, for people.
    """

    holds: bool
    why: str


class Cost(Part):
    """What evading takes, over what fooling the classifier takes; medians over images where both were done.

    Attributes:
        steps: of the same attack.
        distance: L2, of images that evade, over those of an attack that stops at the first wrong answer.
    """

    steps: float
    distance: float

    @property
    def in_words(self) -> str:
        """For people: 2.0 x steps, 1.5 x L2."""
        return f"{self.steps:.1f} x steps, {self.distance:.1f} x L2"


class Row(Part):
    """One defence, faced with one budget.

    Attributes:
        defence: "fused", "fused_single_pass", or a baseline.
        epsilon: L-infinity, in pixel values.
        victims: images that the classifier gets right, all attacked.
        fooled: the share of them that it gets wrong under some aware attack.
        oblivious: by level, the share that fool it and are not noticed, of attacks that do not know the defence.
        aware: the same of attacks that do; None where a gate is closed: these have not converged.
        cost: None where nothing evades.
        stolen: by level, of images made against another bundle's fused score; None where none were.
        gates: by name.
    """

    defence: str
    epsilon: float
    victims: int
    fooled: Rate
    oblivious: Mapping[str, Rate]
    aware: Mapping[str, Rate] | None
    cost: Cost | None
    stolen: Mapping[str, Rate] | None = None
    gates: Mapping[str, Gate]

    @property
    def converged(self) -> bool:
        """Whether every gate is open."""
        return all(gate.holds for gate in self.gates.values())


class ByAnswers(Part):
    """An attack on a live server that goes by the scores in its answers.

    Attributes:
        epsilon: L-infinity, in pixel values.
        victims: how many.
        unnoticed: the share that fool the classifier with a p-value above 5%, by answers asked for.
        gate: who knows all must get as far as who sees answers.
    """

    epsilon: float
    victims: int
    unnoticed: Mapping[int, Rate]
    gate: Gate


class ByDecisions(Part):
    """An attack on a live server that goes by class and verdict alone, however far it has to go.

    Attributes:
        victims: how many.
        unnoticed: the share that ended wrong and CLEAN.
        answers: asked for, the median of these.
        distance: their median L2, over that of the same attack by the class alone; None where nothing arrived.
    """

    victims: int
    unnoticed: Rate
    answers: int
    distance: float | None


class AwareEvaluation(Part):
    """What attackers who know the defences get.

    Attributes:
        bundle_id: of the bundle.
        effort: "quick", "standard" or "full".
        steps: of each attack.
        attacks: each that was tried, in order; an image that one of them leaves unnoticed is spared the next.
        rows: by defence, then by budget.
        left_out: defences that were not attacked, and why.
        by_answers, by_decisions: attacks on a live server; None where there were none.
    """

    bundle_id: str
    effort: str
    steps: int
    attacks: tuple[str, ...]
    rows: tuple[Row, ...]
    left_out: Mapping[str, str] = {}
    by_answers: ByAnswers | None = None
    by_decisions: ByDecisions | None = None
