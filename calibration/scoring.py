"""Scores of a set of images: every detector's readings, and what the classifier answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from askance.calibration.images import Images, slices
from askance.calibration.progress import track
from askance.judgement import Readings
from askance.screening.reading import Reader, in_numbers


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


def score(
    reader: Reader, images: Images, description: str, batch_size: int = 500, pixels: Tensor | None = None
) -> Scores:
    """Read every image.

    Args:
        reader: of the classifier and its detectors.
        images: with labels.
        description: for the progress bar.
        batch_size: images at a time.
        pixels: float32 [N, C, H, W] in [0, 1] in place of the images' own (attacked ones); labels stay.
    """
    batches = []
    for rows in track(slices(len(images), batch_size), description):
        read = reader(images[rows].pixels() if pixels is None else pixels[rows])
        batches.append(in_numbers(read.readings, read.logits))
    return Scores(Readings.joined(batches), images.y)
