"""The least perturbation that an optimisation finds: what CW and EAD share."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from askance.calibration.attacks._advertorch import CLIP
from askance.calibration.attacks.attack import Attack


class LeastPerturbation(Attack):
    """The least perturbation that an optimisation finds.

    Attributes:
        confidence: by how much the wrong logit is to lead.
        searches: binary search steps over the weight of the two losses.
        steps: of each search.
        learning_rate: of the steps.
        initial_weight: of the misclassification loss, in the first search.
    """

    confidence: float = Field(default=0.0, ge=0)
    searches: int = Field(default=5, ge=1)
    steps: int = Field(default=100, ge=1)
    learning_rate: float = Field(default=0.01, gt=0)
    initial_weight: float = Field(default=0.01, gt=0)

    def _arguments(self) -> dict[str, Any]:
        """Keyword arguments of advertorch's attack."""
        return {
            "confidence": self.confidence,
            "learning_rate": self.learning_rate,
            "binary_search_steps": self.searches,
            "max_iterations": self.steps,
            "initial_const": self.initial_weight,
            **CLIP,
        }
