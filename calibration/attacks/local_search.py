"""Local search: a few pixels, without gradients."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from askance.calibration.advertorch_compat import import_advertorch
from askance.calibration.attacks._advertorch import CLIP, perturb_of
from askance.calibration.attacks.attack import Attack, Perturb


class LocalSearch(Attack):
    """A few pixels changed, found greedily without gradients (Narodytska and Kasiviswanathan 2017).

    Attributes:
        rounds: of the search.
        pixels: changed in each round.
    """

    kind: Literal["local_search"]
    needs_gradients: ClassVar[bool] = False
    rounds: int = Field(default=20, ge=1)
    pixels: int = Field(default=20, ge=1)

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:  # noqa: ARG002
        """All rounds."""
        attack = import_advertorch().LocalSearchAttack
        return perturb_of(attack(predict, round_ub=self.rounds, t=self.pixels, **CLIP))
