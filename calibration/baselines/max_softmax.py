"""The baseline of the maximum softmax probability."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from askance.calibration.baselines.baseline import Baseline
from askance.calibration.baselines.observation import Observation


class MaxSoftmax(Baseline):
    """One minus the greatest softmax probability."""

    name: ClassVar[str] = "max_softmax"
    title: ClassVar[str] = "maximum softmax probability, Hendrycks and Gimpel (2017)"

    def score(self, inputs: Observation) -> Tensor:
        """In [0, 1]: the others' probabilities summed, which keeps what 1 - p loses near p = 1."""
        probabilities = inputs.logits.double().softmax(dim=1)
        return probabilities.scatter(1, inputs.predicted[:, None], 0).sum(dim=1)
