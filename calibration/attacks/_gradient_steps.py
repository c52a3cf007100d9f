"""Projected gradient steps: what BIM, PGD and MIM share."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from askance.calibration.attacks._advertorch import CLIP
from askance.calibration.attacks.attack import AimedAttack, Pixels


class GradientSteps(AimedAttack):
    """Projected gradient steps, L-infinity.

    Attributes:
        epsilon: the budget.
        steps, step_size: of the gradient.
    """

    epsilon: Pixels
    steps: int = Field(default=40, ge=1)
    step_size: Pixels = 0.01

    def _arguments(self) -> dict[str, Any]:
        """Keyword arguments of advertorch's attack."""
        return {
            "eps": self.epsilon,
            "nb_iter": self.steps,
            "eps_iter": self.step_size,
            "targeted": self.targeted,
            **CLIP,
        }
