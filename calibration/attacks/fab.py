"""FAB: along the linearised boundary, back towards the image."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from askance.calibration.advertorch_compat import import_advertorch
from askance.calibration.attacks._advertorch import perturb_of
from askance.calibration.attacks.attack import Attack, Perturb


class FAB(Attack):
    """Fast adaptive boundary, minimal L-infinity (Croce and Hein 2020).

    Attributes:
        steps: of the search.
    """

    kind: Literal["fab"]
    steps: int = Field(default=20, ge=1)

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:  # noqa: ARG002
        """All steps."""
        return perturb_of(import_advertorch().LinfFABAttack(predict, n_iter=self.steps))
