"""PGD: projected gradient steps from a random point."""

from __future__ import annotations

from typing import Literal

from torch import nn

from askance.calibration.advertorch_compat import import_advertorch
from askance.calibration.attacks._advertorch import cross_entropy, perturb_of
from askance.calibration.attacks._gradient_steps import GradientSteps
from askance.calibration.attacks.attack import Perturb


class PGD(GradientSteps):
    """Projected gradient descent, L-infinity, from a random point of the budget (Madry et al. 2018).

    Attributes:
        epsilon: the budget.
        steps, step_size: of the gradient.
    """

    kind: Literal["pgd"]

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:  # noqa: ARG002
        """All steps."""
        library = import_advertorch()
        return perturb_of(library.LinfPGDAttack(predict, cross_entropy(), rand_init=True, **self._arguments()))
