"""A small folder of photos, and a classifier of a zoo's that knows them, as the README's tutorial starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from askance.calibration.sources import load_source
from askance.classifiers import build_classifier

CLASSES = ("crossed", "lying", "standing")
SIDE = 32
SLOW = 0.01  # the momentum of MobileNet's batch normalisation


def photo(kind: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Stripes on a noisy ground of any colour, uint8 [32, 32, 3]: lying, standing, or both."""
    wave = np.sin(np.arange(SIDE) * random.uniform(0.6, 1.2) + random.uniform(0, 6))
    stripes = (wave[:, None] if kind != 2 else 0) + (wave[None, :] if kind != 1 else 0)
    ground = random.uniform(60, 190, 3) + random.normal(0, 18, (SIDE, SIDE, 3))
    light = ground + 45 * np.broadcast_to(stripes, (SIDE, SIDE))[:, :, None]
    pixels: NDArray[np.uint8] = light.clip(0, 255).astype(np.uint8)
    return pixels


def take_photos(folder: Path, counts: dict[str, int]) -> None:
    """PNG files in a folder per class: {"train": 240} makes 80 of each class in folder/train."""
    random = np.random.default_rng(0)
    for part, count in counts.items():
        for i in range(count):
            kind = i % len(CLASSES)
            path = folder / part / CLASSES[kind] / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo(kind, random)).save(path)


def train_on(
    folder: Path,
    weights: Path,
    epochs: int = 6,
    factory: str = "torchvision:resnet18",
    arguments: Mapping[str, Any] | None = None,
    rate: float = 0.02,
) -> float:
    """Train a zoo's classifier on folder/train and save its state dict; its accuracy there, in [0, 1]."""
    images = load_source(f"folder:{folder / 'train'}")
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = (images.pixels() - mean) / std
    torch.manual_seed(0)
    classifier = build_classifier(factory, {"num_classes": len(CLASSES), **(arguments or {})})
    learn(classifier, x, images.y, epochs, rate)
    measure_again(classifier, x)
    torch.save(classifier.state_dict(), weights)
    with torch.no_grad():
        return float((classifier(x).argmax(dim=1) == images.y).double().mean())


def learn(classifier: nn.Module, x: Tensor, y: Tensor, epochs: int, rate: float) -> None:
    """Train on normalised images x with labels y; leaves the classifier in eval mode.

    The rate falls to nothing: where steps stay large, the last of them decide, and with them the machine's rounding.
    """
    optimizer = torch.optim.SGD(classifier.train().parameters(), lr=rate, momentum=0.9)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / epochs, total_iters=epochs - 1)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(24):
            optimizer.zero_grad()
            nn.functional.cross_entropy(classifier(x[rows]), y[rows]).backward()
            optimizer.step()
        falling.step()
    classifier.eval()


def measure_again(classifier: nn.Module, x: Tensor) -> None:
    """Batch normalisation by what x gives now, where running averages of few steps lag far behind (MobileNet's do)."""
    slow = [one for one in classifier.modules() if isinstance(one, nn.BatchNorm2d) and one.momentum == SLOW]
    for one in slow:
        one.reset_running_stats()
        one.momentum, one.training = None, True  # a plain mean
    with torch.no_grad():
        for part in x.split(24):
            classifier(part)
    for one in slow:
        one.momentum, one.training = SLOW, False
