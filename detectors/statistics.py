"""Statistics of the detectors' diagnoses: a nearest-neighbour vote, AUROC, and corrected p-values."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def neighbor_vote(known: Tensor, classes: Tensor, points: Tensor, neighbors: int, chunk: int = 1024) -> Tensor:
    """The class that most of each point's nearest known points have; of several, the least: int64 [M].

    Args:
        known: [N, d].
        classes: theirs, int64 [N].
        points: [M, d].
        neighbors: how many vote, at most N.
        chunk: points at a time; a chunk's distances to all known points are in memory.
    """
    known, count = known.double(), int(classes.max()) + 1
    votes = []
    for block in points.double().split(chunk):
        # without a matrix product, in which small distances cancel
        distances = torch.cdist(block, known, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.topk(min(neighbors, len(known)), dim=1, largest=False).indices
        tally = torch.zeros(len(block), count, dtype=torch.long, device=points.device)
        tally.scatter_add_(1, classes[nearest], torch.ones_like(nearest))
        votes.append(tally.argmax(dim=1))
    return torch.cat(votes)


def auroc(negatives: Tensor, positives: Tensor) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half, in [0, 1].

    Args:
        negatives, positives: scores [n] and [m], at least one each, higher = more positive.
    """
    scores, order = torch.cat([negatives, positives]).sort(descending=True, stable=True)
    positive = (order >= len(negatives)).double()
    ends = torch.cat([torch.nonzero(scores.diff()).flatten().cpu(), torch.tensor([len(scores) - 1])])
    true = positive.cumsum(dim=0).cpu()[ends].numpy()
    false = 1 + ends.double().numpy() - true
    if len(ends) > 2:  # points on a straight line add nothing but rounding errors
        corner = np.concatenate([[True], (np.diff(false, 2) != 0) | (np.diff(true, 2) != 0), [True]])
        true, false = true[corner], false[corner]
    true, false = np.concatenate([[0.0], true]), np.concatenate([[0.0], false])
    return float(np.trapezoid(true / true[-1], false / false[-1]))


def corrected(p_values: Tensor) -> Tensor:
    """P-values corrected for their number by Benjamini, Hochberg and Yekutieli (2001), float64 [F] -> [F].

    Those at most q are the discoveries of which at most a share q is false, however they depend on one another.
    """
    count = len(p_values)
    ordered, order = p_values.double().sort()
    rank = torch.arange(1, count + 1, dtype=torch.float64, device=p_values.device)
    harmonic = float(np.sum(1 / rank.cpu().numpy())) if count > 1 else 1.0
    # not `count / rank`, which torch computes by way of 1 / rank
    raised = ordered * torch.full_like(rank, count).div(rank) * harmonic
    least = raised.flip(0).cummin(dim=0).values.flip(0)
    return torch.empty_like(least).index_copy_(0, order, least).clamp(0, 1)
