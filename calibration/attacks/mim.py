"""MIM: projected gradient steps with momentum."""

from __future__ import annotations

from typing import Literal

from torch import nn

from askance.calibration.advertorch_compat import import_advertorch
from askance.calibration.attacks._advertorch import cross_entropy, perturb_of
from askance.calibration.attacks._gradient_steps import GradientSteps
from askance.calibration.attacks.attack import Perturb


class MIM(GradientSteps):
    """Momentum iterative method: projected gradient steps, L-infinity, with momentum 1 (Dong et al. 2018).

    Attributes:
        epsilon: the budget.
        steps, step_size: of the gradient.
    """

    kind: Literal["mim"]

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:  # noqa: ARG002
        """All steps."""
        library = import_advertorch()
        return perturb_of(library.MomentumIterativeAttack(predict, cross_entropy(), **self._arguments()))
