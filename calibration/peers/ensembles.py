"""Peers that weigh one reading per layer by a logistic regression trained on the seen attack."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.linear_model import LogisticRegressionCV
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from askance.calibration.config import PeerName
from askance.calibration.peers.base import Observation, Peer

REFERENCE = 100  # Ma et al. measure dimensionality within minibatches of 100
LID_NEIGHBORS = 20  # and take k = 20 for CIFAR-10


class _LayerEnsemble(Peer):
    """One reading per layer, weighed."""

    _weights: Pipeline

    @abstractmethod
    def _learn(self, clean: Observation) -> None:
        """Learn the readings from clean images."""

    @abstractmethod
    def readings(self, inputs: Observation) -> np.ndarray:
        """Readings [N, L]."""

    def fit(self, clean: Observation, tune: Observation, seen: Sequence[Observation]) -> Self:
        """Learn the readings on `clean`, and their weights by telling `tune` from `seen`."""
        self._learn(clean)
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


class Mahalanobis(_LayerEnsemble):
    """Per layer the squared Mahalanobis distance to the nearest class mean, one covariance for all classes.

    Without the paper's gradient step on the input, which needs a backward pass for every request.
    """

    name: ClassVar[PeerName] = "mahalanobis"
    title: ClassVar[str] = "Mahalanobis layer ensemble, Lee et al. (2018)"

    def _learn(self, clean: Observation) -> None:
        self._layers = {}
        classes = clean.labels.unique()
        for layer, values in clean.features.items():
            features = values.double()
            means = torch.stack([features[clean.labels == k].mean(dim=0) for k in classes])
            centred = features - means[torch.searchsorted(classes, clean.labels)]
            covariance = EmpiricalCovariance(assume_centered=True).fit(centred.numpy())
            self._layers[layer] = means.numpy(), covariance

    def readings(self, inputs: Observation) -> np.ndarray:
        """min_c (f - mu_c)' S^-1 (f - mu_c) of each layer, [N, L]."""
        columns = []
        for layer, (means, covariance) in self._layers.items():
            features = inputs.features[layer].double().numpy()
            columns.append(np.min([covariance.mahalanobis(features - mean) for mean in means], axis=0))
        return np.stack(columns, axis=1)


class LocalIntrinsicDimensionality(_LayerEnsemble):
    """Per layer the local intrinsic dimensionality around an input, among 100 clean images drawn once.

    The paper draws them anew for each minibatch of its evaluation; a service cannot, nor should an answer depend on it.
    """

    name: ClassVar[PeerName] = "lid"
    title: ClassVar[str] = "local intrinsic dimensionality, Ma et al. (2018)"

    def _learn(self, clean: Observation) -> None:
        rows = torch.randperm(len(clean), generator=torch.Generator().manual_seed(0))[:REFERENCE]
        count = min(LID_NEIGHBORS, len(rows))
        self._layers = {
            layer: NearestNeighbors(n_neighbors=count).fit(values[rows].double().numpy())
            for layer, values in clean.features.items()
        }

    def readings(self, inputs: Observation) -> np.ndarray:
        """LID of each layer, [N, L]."""
        columns = []
        for layer, neighbors in self._layers.items():
            distances, _ = neighbors.kneighbors(inputs.features[layer].double().numpy())
            columns.append(local_intrinsic_dimensionality(distances))
        return np.stack(columns, axis=1)


def local_intrinsic_dimensionality(distances: np.ndarray) -> np.ndarray:
    """The maximum-likelihood estimate -(1/k sum_i log(r_i / r_k))^-1 (Ma et al. 2018, Eq. 4), [N, k] -> [N].

    Args:
        distances: to the k nearest neighbours, ascending.
    """
    floor = np.finfo(distances.dtype).tiny
    ratios = np.log(np.maximum(distances, floor) / np.maximum(distances[:, -1:], floor))
    estimate: np.ndarray = -1 / np.minimum(ratios.mean(axis=1), -1e-12)
    return estimate
