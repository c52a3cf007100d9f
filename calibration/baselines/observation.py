"""What the baselines read of a set of images, in one pass for all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from askance.calibration.baselines.squeezers import squeezers
from askance.calibration.images import ImageStream
from askance.calibration.progress import track
from askance.detectors import Tap


class Need(StrEnum):
    """What is read for baselines beside the logits; nothing is that none of them states to need."""

    FEATURES = "features"  # of the tapped layers
    SQUEEZED = "squeezed"  # what the classifier says of squeezed copies: as many forward passes more


@dataclass(frozen=True)
class Observation:
    """What the baselines read of N images.

    Attributes:
        logits: [N, K].
        labels: [N], the true classes.
        features: {layer: [N, C]}, feature maps averaged over their positions (as in Lee et al. 2018), shallow to deep;
            empty where no baseline needs them.
        squeezed: {squeezer: [N, K]}, the softmax of squeezed images; likewise.
    """

    logits: Tensor
    labels: Tensor
    features: Mapping[str, Tensor]
    squeezed: Mapping[str, Tensor]

    @property
    def predicted(self) -> Tensor:
        """The predicted classes, [N]."""
        return self.logits.argmax(dim=1)

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, index: Tensor) -> Observation:
        return Observation(
            self.logits[index],
            self.labels[index],
            {name: values[index] for name, values in self.features.items()},
            {name: values[index] for name, values in self.squeezed.items()},
        )

    def tensors(self) -> dict[str, Tensor]:
        """As one flat dict, for a stage's file."""
        features = {f"feature/{i:04d}/{name}": values for i, (name, values) in enumerate(self.features.items())}
        squeezed = {f"squeezed/{name}": values for name, values in self.squeezed.items()}
        return {"logits": self.logits, "labels": self.labels} | features | squeezed

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Observation:
        """Undo `tensors`."""
        return cls(
            tensors["logits"],
            tensors["labels"],
            {key.split("/", 2)[2]: tensors[key] for key in sorted(tensors) if key.startswith("feature/")},
            {key.split("/", 1)[1]: tensors[key] for key in sorted(tensors) if key.startswith("squeezed/")},
        )


@torch.no_grad()
def observe(tap: Tap, stream: ImageStream, needs: Collection[Need], description: str) -> Observation:
    """Read what the baselines need of every image of `stream`, through its tapped layers and the squeezers.

    Args:
        tap: over the classifier and the layers that the baselines read; the stream's own tap is not used.
        stream: the images.
        needs: what to read beside the logits.
        description: of the progress bar.
    """
    logits, labels = [], []
    features: dict[str, list[Tensor]] = {layer: [] for layer in tap.layers if Need.FEATURES in needs}
    squeezed: dict[str, list[Tensor]] = {}
    for rows in track(stream.slices(), description):
        pixels, truth = stream.batch(rows)
        capture = tap(pixels, truth)
        logits.append(capture.logits)
        labels.append(truth)
        for layer, parts in features.items():
            activation = capture.activations[layer]
            parts.append(activation.flatten(2).mean(dim=2) if activation.ndim > 2 else activation)
        copies = squeezers(pixels.shape[1]) if Need.SQUEEZED in needs else {}
        for name, squeeze in copies.items():
            squeezed.setdefault(name, []).append(tap(squeeze(pixels)).logits.softmax(dim=1))
    return Observation(
        torch.cat(logits),
        torch.cat(labels),
        {layer: torch.cat(parts) for layer, parts in features.items()},
        {name: torch.cat(parts) for name, parts in squeezed.items()},
    )
