"""Readings: what all detectors say of a set of images, as calibration tabulates and fusion weighs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from askance.detectors.detector import Detector, Reading
from askance.detectors.tap import Capture


@dataclass(frozen=True)
class Readings:
    """What the detectors said of N images, and what the classifier answered.

    Attributes:
        scores: {detector: [N]}.
        components: {detector/component: [N]}, in the order that fusion relies on.
        two_sided: the components that can be untypical either way.
        logits: [N, K].
    """

    scores: Mapping[str, Tensor]
    components: Mapping[str, Tensor]
    two_sided: frozenset[str]
    logits: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, detectors: Mapping[str, Detector], captures: Capture | Iterable[Capture]) -> Self:
        """Read one Capture, or several, with fitted detectors.

        Raises:
            NotFittedError: a detector is not.
        """
        captures = [captures] if isinstance(captures, Capture) else list(captures)
        batches = [{name: one.read(capture) for name, one in detectors.items()} for capture in captures]
        return cls.joined(batches, torch.cat([capture.logits for capture in captures]))

    @classmethod
    def joined(cls, batches: Sequence[Mapping[str, Reading]], logits: Tensor) -> Self:
        """From the readings of batches, each {detector: Reading}, at least one; and the logits of all, [N, K]."""
        components = [
            {f"{name}/{part}": values for name, one in batch.items() for part, values in one.components.items()}
            for batch in batches
        ]
        return cls(
            {name: torch.cat([batch[name].score for batch in batches]) for name in batches[0]},
            {name: torch.cat([batch[name] for batch in components]) for name in components[0]},
            frozenset(f"{name}/{part}" for name, one in batches[-1].items() for part in one.two_sided),
            logits,
        )

    def stacked(self, names: Iterable[str]) -> Tensor:
        """Some of the components, in the order of `names`, float32 [F, N]."""
        return torch.stack([self.components[name] for name in names]).float()

    def where(self, kept: Tensor | slice) -> Self:
        """Those of some of the images, by a mask, indices or a slice."""
        return replace(
            self,
            scores={name: values[kept] for name, values in self.scores.items()},
            components={name: values[kept] for name, values in self.components.items()},
            logits=self.logits[kept],
        )
