"""How unusual a score is among clean ones, to either side."""

from __future__ import annotations

import torch
from torch import Tensor


class Unusual:
    """The squared normal quantile of a score among clean ones.

    Args:
        clean: scores of clean images, [n].
    """

    def __init__(self, clean: Tensor) -> None:
        self._clean = clean.sort().values

    def __call__(self, scores: Tensor) -> Tensor:
        """[N] -> float64 [N], in [0, inf)."""
        below = torch.searchsorted(self._clean, scores).double()
        quantiles: Tensor = torch.special.ndtri((below + 0.5) / (len(self._clean) + 1))
        return quantiles.square()
