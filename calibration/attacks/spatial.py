"""The spatial attack: pixels flow, colours stay."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from askance.calibration.advertorch_compat import import_advertorch
from askance.calibration.attacks._advertorch import CLIP
from askance.calibration.attacks.attack import Attack, Perturb


class SpatialTransform(Attack):
    """A smooth flow of pixels, no change of colours (Xiao et al. 2018).

    Attributes:
        steps: of L-BFGS.
        smoothness: weight of the flow's roughness.
    """

    kind: Literal["spatial"]
    steps: int = Field(default=50, ge=1)
    smoothness: float = Field(default=2.0, gt=0)

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:
        """The flow that fools; an image for which none is found stays as it is."""
        attack = import_advertorch().SpatialTransformAttack(
            predict, classes, initial_const=self.smoothness, max_iterations=self.steps, **CLIP
        )

        def perturb(images: Tensor, labels: Tensor) -> Tensor:
            found: Tensor = attack.perturb(images, labels)
            # Where it finds nothing advertorch leaves a black image, which a classifier may well take for another class
            black = found.flatten(1).amax(dim=1) == 0
            return torch.where(black[:, None, None, None], images, found)

        return perturb
