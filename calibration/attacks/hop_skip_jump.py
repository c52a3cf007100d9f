"""HopSkipJump: along the boundary, by decisions alone."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from askance.calibration.attacks._starts import from_decisions
from askance.calibration.attacks.attack import Attack, Perturb


class HopSkipJump(Attack):
    """Gradients at the boundary estimated from decisions alone, minimal L2 (Chen et al. 2020; foolbox).

    Attributes:
        steps: of the walk along the boundary.
        evaluations: decisions asked for in the first step; step n asks for sqrt(n) times as many.
    """

    kind: Literal["hop_skip_jump"]
    needs_gradients: ClassVar[bool] = False
    steps: int = Field(default=20, ge=1)
    evaluations: int = Field(default=100, ge=1)

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:  # noqa: ARG002
        """All steps."""
        from foolbox.attacks.hop_skip_jump import HopSkipJumpAttack

        return from_decisions(
            predict, HopSkipJumpAttack(steps=self.steps, initial_gradient_eval_steps=self.evaluations)
        )
