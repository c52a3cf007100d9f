"""A patch: a square of pixels, free to be anything."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from askance.calibration.attacks._lead import lead
from askance.calibration.attacks.attack import Attack, Perturb, Pixels


class Patch(Attack):
    """A square whose pixels are free in [0, 1], where the gradient is greatest; all others stay (Karmon et al. 2018).

    Signed steps of the cross-entropy's gradient. An image ends where the lead of a wrong class was greatest. No image
    depends on its batch mates.

    Attributes:
        share: of the image, that the square covers; its side is rounded, to one pixel at least.
        steps, step_size: of the gradient.
    """

    kind: Literal["patch"]
    share: float = Field(default=0.05, gt=0, le=1)
    steps: int = Field(default=100, ge=1)
    step_size: Pixels = 0.1

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:  # noqa: ARG002
        """All steps."""

        def perturb(images: Tensor, labels: Tensor) -> Tensor:
            furthest = torch.full((len(images),), -torch.inf)
            found = moved = images
            inside: Tensor | None = None
            for _ in range(self.steps + 1):
                moved = moved.detach().requires_grad_()
                logits = predict(moved)
                leads = lead(logits.detach(), labels)
                (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), moved)
                found = torch.where((leads > furthest)[:, None, None, None], moved.detach(), found)
                furthest = torch.maximum(furthest, leads)
                inside = square(gradient, self.share) if inside is None else inside
                moved = (moved.detach() + self.step_size * gradient.sign() * inside).clamp(0, 1)
            return found

        return perturb


def square(gradient: Tensor, share: float) -> Tensor:
    """Where the square lies: 1 within it and 0 outside, [N, 1, H, W], of gradients [N, C, H, W].

    Of all squares of that share of the image it is the one with the greatest sum of |gradient|.
    """
    height, width = gradient.shape[2:]
    side = min(max(1, round((share * height * width) ** 0.5)), height, width)
    sums = F.avg_pool2d(gradient.abs().sum(dim=1, keepdim=True), side, stride=1)
    best = sums.flatten(1).argmax(dim=1)
    top, left = best // sums.shape[3], best % sums.shape[3]
    rows, columns = torch.arange(height), torch.arange(width)
    down = (rows >= top[:, None]) & (rows < top[:, None] + side)
    across = (columns >= left[:, None]) & (columns < left[:, None] + side)
    inside: Tensor = down[:, None, :, None] & across[:, None, None, :]
    return inside.to(gradient.dtype)
