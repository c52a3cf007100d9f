"""DDN: the perturbation's direction and norm apart."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from askance.calibration.advertorch_compat import import_advertorch
from askance.calibration.attacks._advertorch import CLIP, perturb_of
from askance.calibration.attacks.attack import Attack, Perturb


class DDN(Attack):
    """Decoupled direction and norm, minimal L2 (Rony et al. 2019); its images are quantised to 256 levels.

    Attributes:
        steps: of the gradient.
    """

    kind: Literal["ddn"]
    steps: int = Field(default=100, ge=1)

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:  # noqa: ARG002
        """All steps."""
        return perturb_of(import_advertorch().DDNL2Attack(predict, nb_iter=self.steps, **CLIP))
