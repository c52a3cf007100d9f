"""The boundary attack: a random walk along it, by decisions alone."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from askance.calibration.attacks._starts import from_decisions
from askance.calibration.attacks.attack import Attack, Perturb


class Boundary(Attack):
    """A random walk along the boundary towards the image, decisions alone, minimal L2 (Brendel et al. 2018; foolbox).

    Attributes:
        steps: of the walk, a decision each.
    """

    kind: Literal["boundary"]
    needs_gradients: ClassVar[bool] = False
    steps: int = Field(default=5000, ge=1)

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:  # noqa: ARG002
        """All steps."""
        from foolbox.attacks.boundary_attack import BoundaryAttack

        return from_decisions(predict, BoundaryAttack(steps=self.steps))
