"""PGD in L2: projected gradient steps from a random point."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from askance.calibration.advertorch_compat import import_advertorch
from askance.calibration.attacks._advertorch import CLIP, cross_entropy, perturb_of
from askance.calibration.attacks.attack import AimedAttack, Distance, Perturb


class L2PGD(AimedAttack):
    """Projected gradient descent, L2, from a random point of the budget (Madry et al. 2018).

    Attributes:
        epsilon: the budget, the L2 norm of all pixels' changes together.
        steps: of the gradient.
        step_size: of each, in the same norm; default: 2.5 epsilon / steps, as Madry et al. take it.
    """

    kind: Literal["l2_pgd"]
    epsilon: Distance
    steps: int = Field(default=40, ge=1)
    step_size: Distance | None = None

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:  # noqa: ARG002
        """All steps."""
        return perturb_of(
            import_advertorch().L2PGDAttack(
                predict,
                cross_entropy(),
                eps=self.epsilon,
                nb_iter=self.steps,
                eps_iter=self.step_size or 2.5 * self.epsilon / self.steps,
                targeted=self.targeted,
                **CLIP,
            )
        )
