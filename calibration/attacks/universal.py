"""A universal perturbation: one for many images."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from askance.calibration.attacks.attack import Attack, Perturb, Pixels

MOST_LOSS = 9.0  # of an image: one that is fooled for good pulls no more (Shafahi et al. 2020)


class Universal(Attack):
    """One perturbation for all images of a piece, L-infinity, by signed gradient steps (Shafahi et al. 2020).

    It is trained on the very images that it is added to: the at most 50 of a piece, with their labels. So it fools more
    of them than it would fool of others, and an image's depends on its batch mates.

    Attributes:
        epsilon: the budget.
        steps, step_size: of the gradient of the images' summed cross-entropies, each counted up to 9.
    """

    kind: Literal["universal"]
    epsilon: Pixels
    steps: int = Field(default=100, ge=1)
    step_size: Pixels = 0.01

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:  # noqa: ARG002
        """All steps."""

        def perturb(images: Tensor, labels: Tensor) -> Tensor:
            change = torch.zeros_like(images[:1])
            for _ in range(self.steps):
                change.requires_grad_()
                losses = F.cross_entropy(predict((images + change).clamp(0, 1)), labels, reduction="none")
                (gradient,) = torch.autograd.grad(losses.clamp(max=MOST_LOSS).sum(), change)
                stepped = change.detach() + self.step_size * gradient.sign()
                change = stepped.clamp(-self.epsilon, self.epsilon)
            return (images + change).clamp(0, 1)

        return perturb
