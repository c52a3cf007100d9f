"""Effort: which attacks are tried, for how many steps, on how many images."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from askance.aware.attacks import AwareAttack, Way

WAYS: dict[str, dict[str, Any]] = {
    "selective": {"way": Way.SELECTIVE},
    "weighted": {"way": Way.WEIGHTED},
    "selective by sign": {"way": Way.SELECTIVE, "signs": True},
    "orthogonal": {"way": Way.ORTHOGONAL},
    "matching": {"way": Way.MATCHING},
    "selective, margin 2": {"way": Way.SELECTIVE, "margin": 2.0},
    "selective from anywhere": {"way": Way.SELECTIVE, "random_start": True},
    "weighted from anywhere": {"way": Way.WEIGHTED, "random_start": True, "seed": 1},
}
"""By name, in the order in which they are tried."""
TWICE = "the first for twice as many steps"


class Effort(StrEnum):
    """How hard attackers try."""

    QUICK = "quick"
    STANDARD = "standard"
    FULL = "full"

    @property
    def steps(self) -> int:
        """Of each attack."""
        return {Effort.QUICK: 50, Effort.STANDARD: 100, Effort.FULL: 400}[self]

    @property
    def victims(self) -> int:
        """Images, unless a config says how many."""
        return {Effort.QUICK: 100, Effort.STANDARD: 500, Effort.FULL: 1000}[self]

    @property
    def served_victims(self) -> int:
        """Images of attacks on a live server, at most."""
        return {Effort.QUICK: 20, Effort.STANDARD: 100, Effort.FULL: 200}[self]

    @property
    def answers(self) -> int:
        """Of a live server, for each victim of an attack by scores."""
        return {Effort.QUICK: 200, Effort.STANDARD: 800, Effort.FULL: 4000}[self]

    @property
    def walk(self) -> tuple[int, int]:
        """Steps, and decisions asked for in the first, of an attack by decisions."""
        return {Effort.QUICK: (3, 20), Effort.STANDARD: (10, 40), Effort.FULL: (30, 100)}[self]

    @property
    def all_steps(self) -> int:
        """Of all attacks but the last, which shows whether they were enough."""
        return self.steps * COUNTS[self]

    def attacks(self, epsilon: float) -> dict[str, AwareAttack]:
        """By name, in the order in which they are tried; the first once more, for twice as many steps, in the end."""
        within = {"epsilon": epsilon, "steps": self.steps}
        found = {
            name: AwareAttack.model_validate(within | options) for name, options in list(WAYS.items())[: COUNTS[self]]
        }
        first = next(iter(found.values()))
        return {**found, TWICE: first.model_copy(update={"steps": 2 * first.steps})}


COUNTS = {Effort.QUICK: 2, Effort.STANDARD: 5, Effort.FULL: len(WAYS)}  # of WAYS
