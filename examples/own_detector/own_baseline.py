"""A baseline of one's own, to stand beside the detectors in every table."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from askance.calibration.baselines import Baseline, Observation


class Margin(Baseline):
    """Minus the difference of the two greatest logits."""

    name: ClassVar[str] = "margin"
    title: ClassVar[str] = "logit margin"

    def score(self, inputs: Observation) -> Tensor:
        """Higher = closer to the decision boundary."""
        greatest = inputs.logits.double().topk(2, dim=1).values
        return greatest[:, 1] - greatest[:, 0]
