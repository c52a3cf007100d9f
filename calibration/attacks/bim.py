"""BIM: projected gradient steps from the image itself."""

from __future__ import annotations

from typing import Literal

from torch import nn

from askance.calibration.advertorch_compat import import_advertorch
from askance.calibration.attacks._advertorch import cross_entropy, perturb_of
from askance.calibration.attacks._gradient_steps import GradientSteps
from askance.calibration.attacks.attack import Perturb


class BIM(GradientSteps):
    """Basic iterative method: projected gradient steps, L-infinity, from the image itself (Kurakin et al. 2017).

    Attributes:
        epsilon: the budget.
        steps, step_size: of the gradient.
    """

    kind: Literal["bim"]

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:  # noqa: ARG002
        """All steps."""
        library = import_advertorch()
        return perturb_of(library.LinfPGDAttack(predict, cross_entropy(), rand_init=False, **self._arguments()))
