"""Readings: what all detectors say of a set of images, as calibration tabulates and fusion weighs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from askance.judgement.arrays import Bools, Floats, Ints


@dataclass(frozen=True)
class Readings:
    """What the detectors said of N images, and what the classifier answered.

    Attributes:
        scores: {detector: [N]}.
        components: {detector/component: [N]}, in the order that fusion relies on.
        two_sided: the components that can be untypical either way.
        logits: [N, K].
    """

    scores: Mapping[str, Floats]
    components: Mapping[str, Floats]
    two_sided: frozenset[str]
    logits: Floats

    @property
    def predicted(self) -> Ints:
        """The classifier's answers, int64 [N]."""
        predicted: Ints = self.logits.argmax(axis=1)
        return predicted

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Those of several batches, one after the other; at least one."""
        first = parts[0]
        return cls(
            {name: np.concatenate([part.scores[name] for part in parts]) for name in first.scores},
            {name: np.concatenate([part.components[name] for part in parts]) for name in first.components},
            first.two_sided,
            np.concatenate([part.logits for part in parts]),
        )

    def stacked(self, names: Iterable[str]) -> NDArray[np.float32]:
        """Some of the components, in the order of `names`, float32 [F, N]."""
        return np.stack([self.components[name] for name in names]).astype(np.float32, copy=False)

    def where(self, kept: Bools | Ints | slice) -> Self:
        """Those of some of the images, by a mask, indices or a slice."""
        return replace(
            self,
            scores={name: values[kept] for name, values in self.scores.items()},
            components={name: values[kept] for name, values in self.components.items()},
            logits=self.logits[kept],
        )
