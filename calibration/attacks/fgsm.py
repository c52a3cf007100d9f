"""FGSM: one step along the sign of the gradient."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from askance.calibration.advertorch_compat import import_advertorch
from askance.calibration.attacks._advertorch import CLIP, cross_entropy, perturb_of
from askance.calibration.attacks.attack import AimedAttack, Perturb, Pixels

SHARES = 16  # equal steps along the gradient's sign, of which the smallest that succeeds is taken


class FGSM(AimedAttack):
    """Fast gradient sign method, L-infinity (Goodfellow et al. 2015).

    Attributes:
        epsilon: the budget.
        smallest: of 16 equal steps along the gradient's sign, up to the budget, take the first that succeeds.
    """

    kind: Literal["fgsm"]
    epsilon: Pixels
    smallest: bool = False

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:  # noqa: ARG002
        """The step, or the smallest share of it that succeeds."""
        attack = import_advertorch().GradientSignAttack
        whole = perturb_of(attack(predict, cross_entropy(), eps=self.epsilon, targeted=self.targeted, **CLIP))
        return _smallest(predict, whole, targeted=self.targeted) if self.smallest else whole


def _smallest(predict: nn.Module, whole: Perturb, *, targeted: bool) -> Perturb:
    """The smallest of 16 equal shares of a perturbation that succeeds; where none does, the whole."""

    @torch.no_grad()
    def perturb(images: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            step = whole(images, labels) - images
        found = images + step
        for share in range(SHARES - 1, 0, -1):
            smaller = images + share / SHARES * step
            answers: Tensor = predict(smaller).argmax(dim=1)
            succeeds = answers == labels if targeted else answers != labels
            found = torch.where(succeeds[:, None, None, None], smaller, found)
        return found

    return perturb
