"""An attack of one's own: the options that configs give it, and how it perturbs, in one class."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from askance.calibration.attacks import Attack, Perturb, Pixels


class RandomSigns(Attack):
    """Noise of random signs, L-infinity: the first of several draws that the classifier gets wrong.

    Attributes:
        epsilon: the budget.
        draws: how many are tried.
    """

    kind: Literal["random_signs"]
    epsilon: Pixels
    draws: int = Field(default=20, ge=1)

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:  # noqa: ARG002
        """What perturbs images [N, C, H, W] in [0, 1] with labels [N]; seeded by the caller."""

        @torch.no_grad()
        def perturb(images: Tensor, labels: Tensor) -> Tensor:
            found = images.clone()
            for _ in range(self.draws):
                noisy = (images + self.epsilon * torch.randn_like(images).sign()).clamp(0, 1)
                fooled = predict(noisy).argmax(dim=1) != labels
                still_right = predict(found).argmax(dim=1) == labels
                found = torch.where((fooled & still_right)[:, None, None, None], noisy, found)
            return found

        return perturb
