"""The baseline of local intrinsic dimensionality."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from askance.calibration.baselines._layer_ensemble import LayerEnsemble
from askance.calibration.baselines.observation import Observation

REFERENCE_IMAGES = 100  # Ma et al. measure dimensionality within minibatches of 100
NEIGHBORS = 20  # and take k = 20 for CIFAR-10


class LocalIntrinsicDimensionality(LayerEnsemble):
    """Per layer the local intrinsic dimensionality around an input, among 100 clean images drawn once.

    The paper draws them anew for each minibatch of its evaluation; a service cannot, nor should an answer depend on it.
    """

    name: ClassVar[str] = "lid"
    title: ClassVar[str] = "local intrinsic dimensionality, Ma et al. (2018)"

    def learn(self, clean: Observation) -> None:
        """Draw the clean images."""
        rows = torch.randperm(len(clean), generator=torch.Generator().manual_seed(0))[:REFERENCE_IMAGES]
        count = min(NEIGHBORS, len(rows))
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
