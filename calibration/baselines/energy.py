"""The energy baseline."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from askance.calibration.baselines.baseline import Baseline
from askance.calibration.baselines.observation import Observation


class Energy(Baseline):
    """The free energy at temperature 1: -logsumexp of the logits."""

    name: ClassVar[str] = "energy"
    title: ClassVar[str] = "energy, Liu et al. (2020)"

    def score(self, inputs: Observation) -> Tensor:
        """In nats."""
        return -inputs.logits.double().logsumexp(dim=1)
