"""Weighing: a trained opinion of the fusion, learned by telling peaceful images from an attack that may be seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from askance.judgement.arrays import Doubles

PENALTY = 1e-3  # on the squared weights, per unit of mean loss


def learn_weights(calm: Sequence[Doubles], seen: Sequence[Doubles], penalty: float = PENALTY) -> tuple[Doubles, float]:
    """Logistic regression: what was left in peace against what was attacked, the sets of each side counting alike.

    Args:
        calm: features of clean images, and of benignly changed ones, [S, n] each.
        seen: features of the successful attacked images, [S, m] for each budget.
        penalty: on the squared weights.

    Returns:
        Weights, float64 [S], and the bias.
    """
    sets = [*calm, *seen]
    x = np.concatenate(sets, axis=1).T
    truth = np.repeat([0.0] * len(calm) + [1.0] * len(seen), [part.shape[1] for part in sets])
    share = np.concatenate(
        [np.full(part.shape[1], 0.5 / len(side) / part.shape[1]) for side in (calm, seen) for part in side]
    )

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = parameters[:-1], parameters[-1]
        margin = x @ weights + bias
        value = float(share @ (np.logaddexp(0, margin) - truth * margin)) + penalty * float(weights @ weights)
        slope = share * (expit(margin) - truth)
        return value, np.append(x.T @ slope + 2 * penalty * weights, slope.sum())

    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return found.x[:-1], float(found.x[-1])
