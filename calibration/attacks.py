"""Attacks on the classifier alone, in pixel space, eval mode, seeded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from calibration.advertorch_compat import import_advertorch
from calibration.config import AttackConfig
from calibration.data import Images
from calibration.progress import track
from detectors.preprocessing import Preprocessing


class PixelClassifier(nn.Module):
    """A classifier that takes pixels in [0, 1]: normalisation is inside, so budgets and clipping are in pixels."""

    def __init__(self, classifier: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.classifier = classifier
        self.preprocessing = preprocessing
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, H, W]."""
        logits: Tensor = self.classifier(self.preprocessing.normalize(images))
        return logits


def _fgsm(library: Any, predict: nn.Module, config: AttackConfig) -> Any:
    return library.GradientSignAttack(
        predict, nn.CrossEntropyLoss(reduction="sum"), eps=config.epsilon, clip_min=0.0, clip_max=1.0
    )


def _pgd(library: Any, predict: nn.Module, config: AttackConfig) -> Any:
    return library.LinfPGDAttack(
        predict,
        nn.CrossEntropyLoss(reduction="sum"),
        eps=config.epsilon,
        nb_iter=config.steps,
        eps_iter=config.step_size,
        rand_init=config.random_start,
        clip_min=0.0,
        clip_max=1.0,
    )


_BUILDERS: dict[str, Callable[[Any, nn.Module, AttackConfig], Any]] = {"fgsm": _fgsm, "pgd": _pgd}


def attack(predict: PixelClassifier, images: Images, config: AttackConfig, batch_size: int = 250) -> Tensor:
    """Perturb every image to be misclassified (untargeted, against its true label).

    Args:
        predict: in pixel space.
        images: N of them.
        config: which attack, and its budget.
        batch_size: images at a time.

    Returns:
        float32 [N, C, H, W] in [0, 1], within the budget of the originals; whether each succeeded is for the
        caller to see.
    """
    attacker = _BUILDERS[config.kind](import_advertorch(), predict, config)
    pixels, results = images.pixels(), []
    frozen = [(p, p.requires_grad) for p in predict.parameters()]
    for parameter, _ in frozen:
        parameter.requires_grad_(False)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            for start in track(range(0, len(images), batch_size), f"attack {config.name}"):
                batch = slice(start, start + batch_size)
                results.append(attacker.perturb(pixels[batch].contiguous(), images.y[batch]).detach())
    finally:
        for parameter, wanted in frozen:
            parameter.requires_grad_(wanted)
    return torch.cat(results)
