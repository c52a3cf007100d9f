"""What the attacks of advertorch share."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from askance.calibration.attacks.attack import Perturb

CLIP = {"clip_min": 0.0, "clip_max": 1.0}
"""Keyword arguments: perturbed images stay within the pixels' range."""


class Attacker(Protocol):
    """An attack object of advertorch."""

    def perturb(self, x: Tensor, y: Tensor) -> Tensor:
        """Images, labels or targets -> perturbed images."""


def cross_entropy() -> nn.Module:
    """A sum, so that an image's gradient knows nothing of its batch mates."""
    return nn.CrossEntropyLoss(reduction="sum")


def perturb_of(attacker: Attacker) -> Perturb:
    """What an attack object does to images."""
    return attacker.perturb
