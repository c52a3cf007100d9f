"""The contract of a baseline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

from torch import Tensor

from askance.calibration.baselines.observation import Need, Observation


class Baseline(ABC):
    """A detector from the literature, to stand beside ours in an evaluation; made without arguments."""

    name: ClassVar[str]
    """In configs and tables."""
    title: ClassVar[str]
    """What it is, and its paper."""
    learns_from_attacks: ClassVar[bool] = False
    """Whether it is fitted to attacked images, too: a config that names it must give a seen attack."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    """What it reads of an image beside the logits: an Observation may be without the rest."""

    @classmethod
    def learns(cls) -> bool:
        """Whether it has to be fitted."""
        return cls.fit is not Baseline.fit

    def fit(self, clean: Observation, tune: Observation, seen: Sequence[Observation]) -> Self:  # noqa: ARG002
        """Learn; a baseline that needs no fitting does nothing.

        Args:
            clean: the fit split.
            tune: images that the classifier was not trained on, where the data has some.
            seen: successful attacks on images of `tune`, of the one family that may be trained on; one set a budget.
        """
        return self

    @abstractmethod
    def score(self, inputs: Observation) -> Tensor:
        """Scores [N], float64, higher = more suspicious."""
