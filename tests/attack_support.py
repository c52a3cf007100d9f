"""What the attacks' tests share: a classifier of four pixels, linear in them, and two images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from askance.screening.preprocessing import Preprocessing

PIXELS = Preprocessing(channels=1, height=2, width=2, mean=(0.5,), std=(0.25,))


class Brightness(nn.Module):
    """Class 1 if the four normalised pixels sum to more than zero."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        return logits


IMAGES = torch.tensor([100, 180]).view(2, 1, 1, 1).expand(2, 1, 2, 2) / 255
LABELS = torch.tensor([0, 1])
