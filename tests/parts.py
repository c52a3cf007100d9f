"""Photos of parts with faults, and a classifier of one's own that knows them, as the config of docs/calibration.md has.

The classifier's layers have the names that the docs use; `build` is the factory `parts:build`.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from photos import learn
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor, nn

from askance.calibration.images import Images

CLASSES = ("crack", "dent", "ok", "scratch", "stain")  # as folders come
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 64


class Parts(nn.Module):
    """Four strided convolutions, the mean over their map, and one layer that answers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (3, width // 4, width // 2, width, width)
        blocks = [nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU()) for i, o in pairwise(widths)]
        self.conv1, self.layer1, self.layer2, self.layer4 = blocks
        self.avgpool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(width, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.conv1, self.layer1, self.layer2, self.layer4, self.avgpool, self.fc):
            x = layer(x)
        return x


def build(width: int = 64) -> nn.Module:
    return Parts(width)


def photo(kind: str, random: np.random.Generator) -> NDArray[np.uint8]:
    """A brushed sheet in some light, with one fault or none, uint8 [64, 64, 3]."""
    brushed = random.normal(0, 9, (SIDE, 1)) + random.normal(0, 5, (SIDE, SIDE))
    sheet = random.uniform(110, 180) + random.normal(0, 5, 3) + brushed[:, :, None]
    image = Image.fromarray(sheet.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    x, y = random.uniform(18, 46, 2)
    tone = int(random.uniform(30, 80))
    if kind == "scratch":
        angle = random.uniform(0, np.pi)
        across, down = 16 * np.cos(angle), 16 * np.sin(angle)
        draw.line([(x - across, y - down), (x + across, y + down)], fill=(tone + 150,) * 3, width=2)
    elif kind == "dent":
        draw.ellipse([x - 6, y - 6, x + 6, y + 6], fill=(tone,) * 3)
    elif kind == "stain":
        draw.ellipse([x - 12, y - 9, x + 12, y + 9], fill=(tone + 90, tone + 50, tone))
    elif kind == "crack":
        steps = np.cumsum(
            np.vstack([[x - 14, y], np.column_stack([np.full(7, 4.0), random.uniform(-6, 6, 7)])]), axis=0
        )
        draw.line([(float(i), float(j)) for i, j in steps], fill=(tone,) * 3, width=1)
    return np.asarray(image)


def take_photos(folder: Path, counts: dict[str, int]) -> None:
    """PNG files in a folder per class: {"train": 500} makes 100 of each class in folder/train."""
    random = np.random.default_rng(0)
    for part, count in counts.items():
        for i in range(count):
            kind = CLASSES[i % len(CLASSES)]
            path = folder / part / kind / f"{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo(kind, random)).save(path)


def train_on(images: Images, weights: Path, epochs: int = 15) -> None:
    """Train the classifier and save its state dict."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    x = (images.pixels() - mean) / std
    torch.manual_seed(0)
    classifier = Parts(64)
    learn(classifier, x, images.y, epochs, rate=0.05)
    save_file({name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}, weights)
