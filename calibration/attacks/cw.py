"""Carlini and Wagner's attack."""

from __future__ import annotations

from typing import Literal

from torch import nn

from askance.calibration.advertorch_compat import import_advertorch
from askance.calibration.attacks._advertorch import perturb_of
from askance.calibration.attacks._least_perturbation import LeastPerturbation
from askance.calibration.attacks.attack import Perturb


class CarliniWagner(LeastPerturbation):
    """The least L2 perturbation that Adam finds (Carlini and Wagner 2017).

    Attributes:
        confidence: by how much the wrong logit is to lead.
        searches: binary search steps over the weight of the two losses.
        steps: of each search.
        learning_rate: of the steps.
        initial_weight: of the misclassification loss, in the first search.
    """

    kind: Literal["cw"]

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:
        """All searches."""
        return perturb_of(import_advertorch().CarliniWagnerL2Attack(predict, classes, **self._arguments()))
