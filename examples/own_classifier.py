"""A classifier of your own, from training to a served bundle, by a config: python examples/own_classifier.py FOLDER.

What a server loads must be importable, here `own_classifier:build`, found where this file is, so PYTHONPATH names that;
and because a bundle is data, whoever serves it says that this may be imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

CONFIG = """
name = "own"

[classifier]
factory = "own_classifier:build"            # "module:callable", with `arguments` as its keyword arguments
arguments = { width = 64 }
weights = "own.safetensors"

[classifier.preprocessing]                  # everything outside the classifier works on pixels in [0, 1]
channels = 1
height = 8
width = 8
mean = [0.5]
std = [0.5]

[data]
source = "npz:own.npz"                      # x uint8 [N, H, W], y, classes; or folder:FOLDER, one folder per class

[splits]                                    # slices of the shuffled images; the last three must be unseen by everything
train = "train[:900]"
fit = "train[:900]"
calibrate = "train[900:1150]"
fuse = "train[1150:1400]"
evaluate = "train[1400:]"

[detectors.library_network]                 # layers as named_modules() spells them
thresholds = { hidden = 0.9, output = 0.9 }

[detectors.self_organizing_map]
map_layers = ["hidden", "output"]
side = 10

[evaluation]
attacked_images = 200
attacks = [{ name = "pgd", kind = "pgd", epsilon = 0.15 }]
"""


class Own(nn.Module):
    """Any module that returns logits will do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, width)
        self.output = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 10] of normalised images [B, 1, 8, 8]."""
        logits: Tensor = self.output(self.hidden(images.flatten(1)).relu())
        return logits


def build(width: int) -> nn.Module:
    """The factory that the config names."""
    return Own(width)


def main(folder: Path) -> None:
    """Write data, trained weights and the config; print the commands that go on from there."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)
    # Shuffled as askance will shuffle them (seed 0), so that what the classifier learns from is split `train`.
    np.savez(folder / "own.npz", x=pixels, y=digits.target, classes=[str(i) for i in range(10)])
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:900]
    x = (torch.from_numpy(pixels)[order, None] / 255 - 0.5) / 0.5
    y = torch.from_numpy(digits.target)[order]

    torch.manual_seed(0)
    classifier = build(width=64)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(x), y).backward()
        optimizer.step()
    save_file(classifier.state_dict(), folder / "own.safetensors")
    (folder / "own.toml").write_text(CONFIG, encoding="utf-8")
    print(f"export PYTHONPATH={Path(__file__).resolve().parent}")
    print(f"askance calibrate {folder}/own.toml --out {folder}/bundle")
    print(f"askance inspect {folder}/bundle --allow-factory own_classifier:build")
    print(f"askance serve {folder}/bundle --allow-factory own_classifier:build")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
