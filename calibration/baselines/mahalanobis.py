"""The Mahalanobis baseline."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from sklearn.covariance import EmpiricalCovariance

from askance.calibration.baselines._layer_ensemble import LayerEnsemble
from askance.calibration.baselines.observation import Observation


class Mahalanobis(LayerEnsemble):
    """Per layer the squared Mahalanobis distance to the nearest class mean, one covariance for all classes.

    Without the paper's gradient step on the input, which needs a backward pass for every request.
    """

    name: ClassVar[str] = "mahalanobis"
    title: ClassVar[str] = "Mahalanobis layer ensemble, Lee et al. (2018)"

    def learn(self, clean: Observation) -> None:
        """The class means and their covariance, of each layer."""
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
