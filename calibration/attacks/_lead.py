"""By how much a wrong class leads."""

from __future__ import annotations

import torch
from torch import Tensor


def lead(logits: Tensor, labels: Tensor) -> Tensor:
    """By how much the greatest of the other classes' logits leads over the labels' own, [N] of logits [N, K]."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1, keepdim=True)
    return (others - own)[:, 0]
