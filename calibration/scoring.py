"""Scores of a set of images: every detector's score and components, and what the classifier answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from askance.calibration.images import ImageStream
from askance.calibration.progress import Tracked
from askance.detectors import Detector
from askance.detectors.fusion import all_components, all_two_sided
from askance.detectors.screen import read_all


@dataclass(frozen=True)
class Scores:
    """What the detectors said of N images.

    Attributes:
        scores: {detector: [N]}.
        components: {detector/component: [N]}.
        two_sided: the components that can be untypical either way.
        logits: [N, K].
        labels: [N], the true classes.
    """

    scores: Mapping[str, Tensor]
    components: Mapping[str, Tensor]
    two_sided: frozenset[str]
    logits: Tensor
    labels: Tensor

    @property
    def correct(self) -> Tensor:
        """Whether the classifier is right, bool [N]."""
        return self.logits.argmax(dim=1) == self.labels

    def only(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Some of the components, in the order of `names`."""
        return {name: self.components[name] for name in names}

    def tensors(self) -> dict[str, Tensor]:
        """As one flat dict, for a stage's file."""
        flat = {f"score/{name}": values for name, values in self.scores.items()}
        for i, (name, values) in enumerate(self.components.items()):
            side = "either" if name in self.two_sided else "upper"
            # numbered, because a safetensors file does not keep the order that fusion relies on
            flat[f"component/{i:04d}/{side}/{name}"] = values
        return flat | {"logits": self.logits, "labels": self.labels}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Scores:
        """Undo `tensors`."""
        keys = [key.split("/", 3) for key in sorted(tensors) if key.startswith("component/")]
        return cls(
            {name.removeprefix("score/"): v for name, v in tensors.items() if name.startswith("score/")},
            {key[3]: tensors["/".join(key)] for key in keys},
            frozenset(key[3] for key in keys if key[2] == "either"),
            tensors["logits"],
            tensors["labels"],
        )


@torch.no_grad()
def score(detectors: Mapping[str, Detector], stream: ImageStream, description: str) -> Scores:
    """Read every image of a stream with every detector."""
    scores: dict[str, list[Tensor]] = {}
    components: dict[str, list[Tensor]] = {}
    two_sided: frozenset[str] = frozenset()
    logits, labels = [], []
    for capture in Tracked(stream, description):
        readings = read_all(detectors, capture)
        for name, reading in readings.items():
            scores.setdefault(name, []).append(reading.score)
        for name, values in all_components(readings).items():
            components.setdefault(name, []).append(values)
        two_sided = all_two_sided(readings)
        logits.append(capture.logits)
        labels.append(capture.predicted if capture.labels is None else capture.labels)
    return Scores(
        {name: torch.cat(parts) for name, parts in scores.items()},
        {name: torch.cat(parts) for name, parts in components.items()},
        two_sided,
        torch.cat(logits),
        torch.cat(labels),
    )
