"""The baseline of deep nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors as SklearnNeighbors
from torch import Tensor

from askance.calibration.baselines.baseline import Baseline
from askance.calibration.baselines.observation import Need, Observation

NEIGHBORS = 50  # Sun et al. use 50 for CIFAR-10


class NearestNeighbors(Baseline):
    """The distance to the k-th nearest clean neighbour in the penultimate layer, features at unit length."""

    name: ClassVar[str] = "knn"
    title: ClassVar[str] = "deep nearest neighbours, Sun et al. (2022)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FEATURES})

    def fit(self, clean: Observation, tune: Observation, seen: Sequence[Observation]) -> Self:  # noqa: ARG002
        """Remember the clean features."""
        self._neighbors = SklearnNeighbors(n_neighbors=min(NEIGHBORS, len(clean))).fit(self._features(clean))
        return self

    def _features(self, inputs: Observation) -> object:
        layers = [name for name, values in inputs.features.items() if values.shape[1] != inputs.logits.shape[1]]
        return F.normalize(inputs.features[layers[-1]].double(), dim=1).numpy()

    def score(self, inputs: Observation) -> Tensor:
        """In [0, 2]."""
        distances, _ = self._neighbors.kneighbors(self._features(inputs))
        return torch.from_numpy(distances[:, -1])
