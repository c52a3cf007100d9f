"""What the baselines read of a set of images, in one pass for all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
    MASKED = "masked"  # logits and layers of a copy that a learned mask has changed: one forward pass more


@dataclass(frozen=True)
class Observation:
    """What the baselines read of N images.

    Attributes:
        logits: [N, K].
        labels: [N], the true classes.
        features: {layer: [N, C]}, feature maps averaged over their positions (as in Lee et al. 2018), shallow to deep;
            empty where no baseline needs them.
        squeezed: {squeezer: [N, K]}, the softmax of squeezed images; likewise.
        masked: logits and features of the masked images; None where no baseline needs them.
    """

    logits: Tensor
    labels: Tensor
    features: Mapping[str, Tensor]
    squeezed: Mapping[str, Tensor]
    masked: Observation | None = None

    @property
    def predicted(self) -> Tensor:
        """The predicted classes, [N]."""
        return self.logits.argmax(dim=1)

    @property
    def hidden(self) -> list[Tensor]:
        """Features of the layers that are not the logits, shallow to deep."""
        return [values for values in self.features.values() if values.shape[1] != self.logits.shape[1]]

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, index: Tensor) -> Observation:
        return Observation(
            self.logits[index],
            self.labels[index],
            {name: values[index] for name, values in self.features.items()},
            {name: values[index] for name, values in self.squeezed.items()},
            None if self.masked is None else self.masked[index],
        )

    @classmethod
    def joined(cls, parts: Sequence[Observation]) -> Observation:
        """Several of the same kind as one."""
        masked = [part.masked for part in parts if part.masked is not None]
        return cls(
            torch.cat([part.logits for part in parts]),
            torch.cat([part.labels for part in parts]),
            {name: torch.cat([part.features[name] for part in parts]) for name in parts[0].features},
            {name: torch.cat([part.squeezed[name] for part in parts]) for name in parts[0].squeezed},
            cls.joined(masked) if masked else None,
        )

    def tensors(self) -> dict[str, Tensor]:
        """As one flat dict, for a stage's file."""
        features = {f"feature/{i:04d}/{name}": values for i, (name, values) in enumerate(self.features.items())}
        squeezed = {f"squeezed/{name}": values for name, values in self.squeezed.items()}
        masked = {} if self.masked is None else {f"masked/{key}": v for key, v in self.masked.tensors().items()}
        return {"logits": self.logits, "labels": self.labels} | features | squeezed | masked

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Observation:
        """Undo `tensors`."""
        masked = {key.split("/", 1)[1]: tensors[key] for key in tensors if key.startswith("masked/")}
        return cls(
            tensors["logits"],
            tensors["labels"],
            {key.split("/", 2)[2]: tensors[key] for key in sorted(tensors) if key.startswith("feature/")},
            {key.split("/", 1)[1]: tensors[key] for key in sorted(tensors) if key.startswith("squeezed/")},
            cls.from_tensors(masked) if masked else None,
        )


@torch.no_grad()
def observe(
    tap: Tap, stream: ImageStream, needs: Collection[Need], description: str, mask: Tensor | None = None
) -> Observation:
    """Read what the baselines need of every image of `stream`.

    Args:
        tap: over the classifier and the layers that the baselines read; the stream's own tap is not used.
        stream: the images.
        needs: what to read beside the logits.
        description: of the progress bar.
        mask: by which pixels are multiplied, [C, H, W], where masked copies are needed.
    """
    slices = track(stream.slices(), description)
    return Observation.joined([observe_batch(tap, *stream.batch(rows), needs, mask) for rows in slices])


def observe_batch(
    tap: Tap, pixels: Tensor, labels: Tensor, needs: Collection[Need], mask: Tensor | None = None
) -> Observation:
    """The same of one batch, [B, C, H, W] and [B]; gradient mode is the caller's."""
    capture = tap(pixels, labels)
    copies = squeezers(pixels.shape[1]) if Need.SQUEEZED in needs else {}
    return Observation(
        capture.logits,
        labels,
        {layer: _averaged(capture.activations[layer]) for layer in tap.layers} if Need.FEATURES in needs else {},
        {name: tap(squeeze(pixels)).logits.softmax(dim=1) for name, squeeze in copies.items()},
        None if mask is None else observe_batch(tap, pixels * mask, labels, {Need.FEATURES}),
    )


def _averaged(activation: Tensor) -> Tensor:
    return activation.flatten(2).mean(dim=2) if activation.ndim > 2 else activation
