"""SPSA: gradients estimated from answers."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from askance.calibration.advertorch_compat import import_advertorch
from askance.calibration.attacks._advertorch import CLIP, perturb_of
from askance.calibration.attacks.attack import Attack, Perturb, Pixels


class SPSA(Attack):
    """Gradients estimated from answers alone, L-infinity (Uesato et al. 2018).

    Attributes:
        epsilon: the budget.
        steps, learning_rate: of Adam.
        samples: pairs of answers asked for in each step.
    """

    kind: Literal["spsa"]
    needs_gradients: ClassVar[bool] = False
    epsilon: Pixels
    steps: int = Field(default=10, ge=1)
    samples: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=0.01, gt=0)

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:  # noqa: ARG002
        """All steps."""
        return perturb_of(
            import_advertorch().LinfSPSAAttack(
                predict,
                self.epsilon,
                lr=self.learning_rate,
                nb_iter=self.steps,
                nb_sample=self.samples,
                max_batch_size=self.samples,
                **CLIP,
            )
        )
