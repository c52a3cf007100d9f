"""What the attacks of AutoAttack's own code share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from askance.calibration.attacks.attack import Perturb

LIBRARIES = ("pyautoattack",)
"""What their images depend on."""


def perturb_of(attacker: Callable[..., Any], **options: Any) -> Perturb:
    """What an attack class does to images: made anew for each piece, because it seeds torch with a seed of its own."""

    def perturb(images: Tensor, labels: Tensor) -> Tensor:
        seed = int(torch.randint(2**31, ()))
        perturbed: Tensor = attacker(seed=seed, device=images.device, **options).perturb(images, labels)
        return perturbed

    return perturb
