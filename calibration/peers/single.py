"""Peers that are one reading: of the softmax, the energy, squeezed copies, or neighbours among clean features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors as SklearnNeighbors
from torch import Tensor

from askance.calibration.config import PeerName
from askance.calibration.peers.base import Observation, Peer

NEIGHBORS = 50  # Sun et al. use 50 for CIFAR-10


class MaxSoftmax(Peer):
    """One minus the greatest softmax probability."""

    name: ClassVar[PeerName] = "max_softmax"
    title: ClassVar[str] = "maximum softmax probability, Hendrycks and Gimpel (2017)"

    def score(self, inputs: Observation) -> Tensor:
        """In [0, 1]: the others' probabilities summed, which keeps what 1 - p loses near p = 1."""
        probabilities = inputs.logits.double().softmax(dim=1)
        return probabilities.scatter(1, inputs.predicted[:, None], 0).sum(dim=1)


class Energy(Peer):
    """The free energy at temperature 1: -logsumexp of the logits."""

    name: ClassVar[PeerName] = "energy"
    title: ClassVar[str] = "energy, Liu et al. (2020)"

    def score(self, inputs: Observation) -> Tensor:
        """In nats."""
        return -inputs.logits.double().logsumexp(dim=1)


class FeatureSqueezing(Peer):
    """The greatest L1 distance between the softmax of an image and that of its squeezed copies, in [0, 2]."""

    name: ClassVar[PeerName] = "feature_squeezing"
    title: ClassVar[str] = "feature squeezing, Xu et al. (2018)"

    def score(self, inputs: Observation) -> Tensor:
        """In [0, 2]."""
        own = inputs.logits.double().softmax(dim=1)
        distances = [(own - squeezed.double()).abs().sum(dim=1) for squeezed in inputs.squeezed.values()]
        return torch.stack(distances).amax(dim=0)


class NearestNeighbors(Peer):
    """The distance to the k-th nearest clean neighbour in the penultimate layer, features at unit length."""

    name: ClassVar[PeerName] = "knn"
    title: ClassVar[str] = "deep nearest neighbours, Sun et al. (2022)"

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
