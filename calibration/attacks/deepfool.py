"""DeepFool: steps to the nearest linearised boundary."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from askance.calibration.attacks._foolbox import perturb_of
from askance.calibration.attacks.attack import Attack, Perturb


class DeepFool(Attack):
    """Steps to the nearest linearised boundary, minimal L2 (Moosavi-Dezfooli et al. 2016; foolbox).

    Attributes:
        steps: at most.
        overshoot: share by which the boundary is overstepped.
    """

    kind: Literal["deepfool"]
    steps: int = Field(default=50, ge=1)
    overshoot: float = Field(default=0.02, ge=0)

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:
        """All steps."""
        from foolbox.attacks.deepfool import L2DeepFoolAttack

        return perturb_of(predict, L2DeepFoolAttack(steps=self.steps, candidates=classes, overshoot=self.overshoot))
