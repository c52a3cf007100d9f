"""Weighing: a trained opinion of the fusion, learned by telling clean images from an attack that may be seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

PENALTY = 1e-3  # on the squared weights, per unit of mean loss


def learn_weights(clean: Tensor, seen: Sequence[Tensor], penalty: float = PENALTY) -> tuple[Tensor, Tensor]:
    """Logistic regression with weights that are not negative: clean against seen, each budget counting alike.

    Args:
        clean: surprisals u of clean images, [F, n] (`Fusion.surprisals`).
        seen: surprisals of the successful attacked images, [F, m] for each budget; empty ones are left out.
        penalty: on the squared weights.

    Returns:
        Weights [F], >= 0, and the bias [], float64.
    """
    parts = [part for part in seen if part.shape[1] > 0]
    x = torch.cat([clean, *parts], dim=1).double().numpy().T
    y = np.repeat([0.0, 1.0], [clean.shape[1], x.shape[0] - clean.shape[1]])
    share = np.concatenate(
        [np.full(clean.shape[1], 0.5 / clean.shape[1])]
        + [np.full(part.shape[1], 0.5 / len(parts) / part.shape[1]) for part in parts]
    )

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = parameters[:-1], parameters[-1]
        margin = x @ weights + bias
        value = float(share @ (np.logaddexp(0, margin) - y * margin)) + penalty * float(weights @ weights)
        slope = share * (expit(margin) - y)
        return value, np.append(x.T @ slope + 2 * penalty * weights, slope.sum())

    start = np.zeros(x.shape[1] + 1)
    bounds = [(0.0, None)] * x.shape[1] + [(None, None)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
    return torch.from_numpy(np.maximum(found.x[:-1], 0)), torch.tensor(found.x[-1], dtype=torch.float64)
