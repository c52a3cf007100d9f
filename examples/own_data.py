"""Data of your own, live: a torch dataset and a module as they are, no config: python examples/own_data.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

import askance


class Digits(Dataset[tuple[Tensor, int]]):
    """Any map-style dataset of (image, label): images as PIL's, uint8, or floats in [0, 1], before normalisation."""

    classes = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    def __init__(self) -> None:
        digits = load_digits()
        self._images = torch.from_numpy(digits.images).float()[:, None] / 16
        self._labels = digits.target.tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._images[index], self._labels[index]


def main(folder: Path) -> None:
    """Train, calibrate, open, screen."""
    data = Digits()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    parts = {"fit": order[:900], "calibrate": order[900:1150], "fuse": order[1150:1400], "evaluate": order[1400:]}
    splits = {name: Subset(data, rows) for name, rows in parts.items()}

    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.01)
    x = torch.stack([data[i][0] for i in parts["fit"]])
    y = torch.tensor([data[i][1] for i in parts["fit"]])
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier((x - 0.5) / 0.5), y).backward()
        optimizer.step()

    bundle = askance.calibrate(
        classifier,
        splits,
        out=folder / "bundle",
        name="own-data",
        class_names=Digits.classes,
        mean=[0.5],
        std=[0.5],
        detectors={
            "library_network": {"thresholds": {"1": 0.9, "3": 0.9}},
            "self_organizing_map": {"map_layers": ["1", "3"], "side": 10},
        },
        attacks=[{"name": "pgd", "kind": "pgd", "epsilon": 0.15}],
        attacked_images=200,
    )
    print(f"fused AUROC on PGD: {bundle.evaluation().auroc['pgd']['fused']:.3f}")

    # The bundle holds weights, not code: where no factory can be named, the module is handed over again.
    with askance.open(bundle.path, classifier=classifier) as screen:
        image, label = data[parts["evaluate"][0]]
        answer = screen(image)
        print(f"{Digits.classes[label]} taken for {answer.label}: {answer.verdict}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
