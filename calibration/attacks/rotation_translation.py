"""Rotations and shifts: the worst of a few."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from askance.calibration.attacks.attack import Attack, Perturb


class RotationTranslation(Attack):
    """The worst of some random rotations with a shift, by the loss (Engstrom et al. 2019, "worst of k").

    All images of a piece try the same ones; none depends on its batch mates. What comes in from outside is black.

    Attributes:
        degrees: of rotation, at most, either way.
        shift: at most, either way, down and across, as a share of the image's side.
        samples: how many are tried.
    """

    kind: Literal["rotation_translation"]
    needs_gradients: ClassVar[bool] = False
    degrees: float = Field(default=30.0, ge=0, le=180)
    shift: float = Field(default=0.1, ge=0, le=1)
    samples: int = Field(default=50, ge=1)

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:  # noqa: ARG002
        """All samples."""

        @torch.no_grad()
        def perturb(images: Tensor, labels: Tensor) -> Tensor:
            found, worst = images, torch.full((len(images),), -torch.inf)
            for angle, down, across in (2 * torch.rand(self.samples, 3) - 1).tolist():
                moved = turned(images, angle * self.degrees, down * self.shift, across * self.shift)
                loss = F.cross_entropy(predict(moved), labels, reduction="none")
                found = torch.where((loss > worst)[:, None, None, None], moved, found)
                worst = torch.maximum(worst, loss)
            return found

        return perturb


def turned(images: Tensor, degrees: float, down: float, across: float) -> Tensor:
    """Images [N, C, H, W] turned about their middle, counter-clockwise, then shifted by shares of their sides.

    Bilinear; black where nothing comes from.
    """
    height, width = images.shape[2:]
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    # grid_sample asks where each pixel comes from, in units of half a side
    to_source = torch.tensor([[cosine, -sine * height / width], [sine * width / height, cosine]])
    offset = to_source @ torch.tensor([-2.0 * across, -2.0 * down])
    matrix = torch.cat([to_source, offset[:, None]], dim=1).expand(len(images), 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False).clamp(0, 1)
