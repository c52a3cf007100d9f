"""Readings: what all detectors say of a set of images, as calibration tabulates and fusion weighs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from askance.detectors.detector import Detector, Reading
from askance.detectors.fusion import all_components, all_two_sided
from askance.detectors.tap import Capture


@dataclass(frozen=True)
class Readings:
    """What the detectors said of N images.

    Attributes:
        scores: {detector: [N]}.
        components: {detector/component: [N]}, in the order that fusion relies on.
        two_sided: the components that can be untypical either way.
    """

    scores: Mapping[str, Tensor]
    components: Mapping[str, Tensor]
    two_sided: frozenset[str]

    @classmethod
    @torch.no_grad()
    def of(cls, detectors: Mapping[str, Detector], captures: Capture | Iterable[Capture]) -> Self:
        """Read one Capture, or several, with fitted detectors.

        Raises:
            NotFittedError: a detector is not.
        """
        captures = [captures] if isinstance(captures, Capture) else captures
        return cls.joined([{name: one.read(capture) for name, one in detectors.items()} for capture in captures])

    @classmethod
    def joined(cls, batches: Sequence[Mapping[str, Reading]]) -> Self:
        """From the readings of batches, each {detector: Reading}; at least one."""
        components = [all_components(batch) for batch in batches]
        return cls(
            {name: torch.cat([batch[name].score for batch in batches]) for name in batches[0]},
            {name: torch.cat([batch[name] for batch in components]) for name in components[0]},
            all_two_sided(batches[-1]),
        )

    def only(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Some of the components, in the order of `names`."""
        return {name: self.components[name] for name in names}
