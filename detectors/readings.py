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
        captures = [captures] if isinstance(captures, Capture) else captures
        return cls.joined(
            [
                cls.of_batch({name: one.read(capture) for name, one in detectors.items()}, capture.logits)
                for capture in captures
            ]
        )

    @classmethod
    def of_batch(cls, readings: Mapping[str, Reading], logits: Tensor) -> Self:
        """From every detector's Reading of a Capture, {detector: Reading}, and its logits [B, K]."""
        return cls(
            {name: one.score for name, one in readings.items()},
            {f"{name}/{part}": values for name, one in readings.items() for part, values in one.components.items()},
            frozenset(f"{name}/{part}" for name, one in readings.items() for part in one.two_sided),
            logits,
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Those of several batches, one after the other; at least one."""
        first = parts[0]
        return cls(
            {name: torch.cat([part.scores[name] for part in parts]) for name in first.scores},
            {name: torch.cat([part.components[name] for part in parts]) for name in first.components},
            first.two_sided,
            torch.cat([part.logits for part in parts]),
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
