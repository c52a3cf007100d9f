"""The baseline of feature squeezing."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from askance.calibration.baselines.baseline import Baseline
from askance.calibration.baselines.observation import Need, Observation


class FeatureSqueezing(Baseline):
    """The greatest L1 distance between the softmax of an image and that of its squeezed copies, in [0, 2]."""

    name: ClassVar[str] = "feature_squeezing"
    title: ClassVar[str] = "feature squeezing, Xu et al. (2018)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SQUEEZED})

    def score(self, inputs: Observation) -> Tensor:
        """In [0, 2]."""
        own = inputs.logits.double().softmax(dim=1)
        distances = [(own - squeezed.double()).abs().sum(dim=1) for squeezed in inputs.squeezed.values()]
        return torch.stack(distances).amax(dim=0)
