"""The elastic-net attack."""

from __future__ import annotations

from typing import Literal

from torch import nn

from askance.calibration.advertorch_compat import import_advertorch
from askance.calibration.attacks._advertorch import perturb_of
from askance.calibration.attacks._least_perturbation import LeastPerturbation
from askance.calibration.attacks.attack import Perturb


class ElasticNet(LeastPerturbation):
    """The least perturbation in L1 and L2 together, by ISTA (Chen et al. 2018).

    Attributes:
        confidence: by how much the wrong logit is to lead.
        searches: binary search steps over the weight of the two losses.
        steps: of each search.
        learning_rate: of the steps.
        initial_weight: of the misclassification loss, in the first search.
    """

    kind: Literal["ead"]

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:
        """All searches."""
        return perturb_of(import_advertorch().ElasticNetL1Attack(predict, classes, **self._arguments()))
