"""How well scores separate attacked from clean inputs."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

FALSE_POSITIVE_RATES = (0.05, 0.01)


def detection(clean: Tensor, attacked: Tensor) -> dict[str, float] | None:
    """AUROC, AUPR (attacked as positives) and TPR at 5% and 1% FPR, each in [0, 1].

    Args:
        clean: scores of clean inputs [n], higher = more suspicious.
        attacked: scores of attacked inputs [m].

    Returns:
        {"auroc", "aupr", "tpr_at_fpr_0.05", "tpr_at_fpr_0.01"}, or None when there is nothing to compare.
    """
    if len(clean) == 0 or len(attacked) == 0:
        return None
    truth = np.concatenate([np.zeros(len(clean)), np.ones(len(attacked))])
    scores = np.concatenate([clean.double().numpy(), attacked.double().numpy()])
    false_positive, true_positive, _ = roc_curve(truth, scores, drop_intermediate=False)
    result = {
        "auroc": float(roc_auc_score(truth, scores)),
        "aupr": float(average_precision_score(truth, scores)),
    }
    for rate in FALSE_POSITIVE_RATES:
        result[f"tpr_at_fpr_{rate:g}"] = float(true_positive[false_positive <= rate].max())
    return result
