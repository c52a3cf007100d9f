"""Scores of a set of images: every detector's readings, and what the classifier answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from askance.calibration.images import ImageStream
from askance.calibration.progress import Tracked
from askance.detectors import Detector
from askance.detectors.reader import in_numbers, read_all
from askance.judgement import Readings


@dataclass(frozen=True)
class Scores:
    """What the detectors said of N images.

    Attributes:
        readings: the detectors', and the classifier's logits.
        labels: [N], the true classes.
    """

    readings: Readings
    labels: Tensor

    @property
    def predicted(self) -> Tensor:
        """The classifier's answers, [N]."""
        return torch.from_numpy(self.readings.predicted)

    @property
    def correct(self) -> Tensor:
        """Whether the classifier is right, bool [N]."""
        return self.predicted == self.labels

    def tensors(self) -> dict[str, Tensor]:
        """As one flat dict, for a stage's file."""
        flat: dict[str, NDArray[Any]] = {f"score/{name}": values for name, values in self.readings.scores.items()}
        for i, (name, values) in enumerate(self.readings.components.items()):
            side = "either" if name in self.readings.two_sided else "upper"
            # numbered, because a safetensors file does not keep the order that fusion relies on
            flat[f"component/{i:04d}/{side}/{name}"] = values
        flat["logits"] = self.readings.logits
        return {name: torch.from_numpy(values) for name, values in flat.items()} | {"labels": self.labels}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], detectors: Iterable[str]) -> Scores:
        """Undo `tensors`; a file does not keep the order of the detectors, which are therefore given."""
        keys = [key.split("/", 3) for key in sorted(tensors) if key.startswith("component/")]
        readings = Readings(
            {name: tensors[f"score/{name}"].numpy() for name in detectors},
            {key[3]: tensors["/".join(key)].numpy() for key in keys},
            frozenset(key[3] for key in keys if key[2] == "either"),
            tensors["logits"].numpy(),
        )
        return cls(readings, tensors["labels"])


@torch.no_grad()
def score(detectors: Mapping[str, Detector], stream: ImageStream, description: str) -> Scores:
    """Read every image of a stream with every detector."""
    batches, labels = [], []
    for capture in Tracked(stream, description):
        batches.append(in_numbers(read_all(detectors, capture), capture.logits))
        labels.append(capture.predicted if capture.labels is None else capture.labels)
    return Scores(Readings.joined(batches), torch.cat(labels))
