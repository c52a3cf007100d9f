"""One reading per layer, weighed by a logistic regression trained on the seen attack: what two baselines share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from askance.calibration.baselines.baseline import Baseline
from askance.calibration.baselines.observation import Need, Observation


class LayerEnsemble(Baseline):
    """One reading per layer, weighed."""

    learns_from_attacks: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FEATURES})

    _weights: Pipeline

    @abstractmethod
    def learn(self, clean: Observation) -> None:
        """Learn the readings from clean images."""

    @abstractmethod
    def readings(self, inputs: Observation) -> np.ndarray:
        """Readings [N, L]."""

    def fit(self, clean: Observation, tune: Observation, seen: Sequence[Observation]) -> Self:
        """Learn the readings on `clean`, and their weights by telling `tune` from `seen`."""
        self.learn(clean)
        attacked = np.concatenate([self.readings(one) for one in seen])
        x = np.concatenate([self.readings(tune), attacked])
        y = np.repeat([0, 1], [len(tune), len(attacked)])
        # as in Lee et al.'s code: an L2 penalty chosen by cross-validation
        weights = LogisticRegressionCV(
            max_iter=2000,
            class_weight="balanced",
            scoring="neg_log_loss",
            l1_ratios=(0.0,),
            use_legacy_attributes=False,
        )
        self._weights = make_pipeline(StandardScaler(), weights).fit(x, y)
        return self

    def score(self, inputs: Observation) -> Tensor:
        """The log-odds of an attack."""
        return torch.from_numpy(self._weights.decision_function(self.readings(inputs)))
