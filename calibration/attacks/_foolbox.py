"""What the attacks of foolbox share."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from askance.calibration.attacks.attack import Perturb


class MinimizationAttack(Protocol):
    """An attack object of foolbox that looks for the least perturbation."""

    def run(self, model: Any, inputs: Tensor, criterion: Tensor, **options: Any) -> Tensor:
        """Images and labels -> perturbed images."""


def perturb_of(predict: nn.Module, attack: MinimizationAttack, **options: Any) -> Perturb:
    """What an attack object does to images; `options` go to its `run`."""
    from foolbox.models.pytorch import PyTorchModel

    def perturb(images: Tensor, labels: Tensor) -> Tensor:
        model = PyTorchModel(predict, bounds=(0, 1), device=images.device)
        return attack.run(model, images, labels, **options)

    return perturb
