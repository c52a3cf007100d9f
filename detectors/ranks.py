"""Ranks: a detector's own readings put on one scale by how clean ones are spread; they promise no rate of false alarms.

What is promised is made of its score in the end, by `askance.judgement`; these are the same formulas for tensors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from askance.judgement.margins import NOISE

TIE = 1e-5
"""How far two similarities, in [-1, 1], may be apart and still be a tie but for noise."""


def yardstick(values: Tensor, points: int = 1000) -> Tensor:
    """Evenly spaced quantiles of clean values, [n] -> [points] or [F, n] -> [F, points], sorted."""
    ordered = values.sort(dim=-1).values
    grid = torch.linspace(0, 1, points, dtype=values.dtype)
    return ordered[..., (grid * (ordered.shape[-1] - 1)).round().long()].contiguous()


def p_value(values: Tensor, sorted_values: Tensor) -> Tensor:
    """p = (1 + #{s_i >= s}) / (n + 1) among n clean values, as `judgement.conformal` has it.

    Args:
        values: [B], or [..., F, B] with one row of a yardstick each.
        sorted_values: ascending, [n] or [F, n].

    Returns:
        float64, the shape of `values`, in [1/(n+1), 1].
    """
    # in float32, which is exact for so few and several times faster than integers
    at_least = (sorted_values.unsqueeze(-2) >= values.unsqueeze(-1)).sum(dim=-1, dtype=torch.float32)
    return (1 + at_least.double()) / (sorted_values.shape[-1] + 1)


def around(values: Tensor, sorted_values: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the most that readings may be, among clean ones, as `judgement.margins` has it: [B] among [n], or
    [F, B] among [F, n].
    """
    n = sorted_values.shape[-1]
    cut = round(0.05 * (n - 1))
    middle = sorted_values[..., n - 1 - cut] - sorted_values[..., cut]
    spread = torch.maximum(middle, (sorted_values[..., -1] - sorted_values[..., 0]) / 10)
    off = NOISE * (spread.unsqueeze(-1) + NOISE * values.abs())
    return values - off, values + off


def harmonic_mean(surprisals: Tensor) -> Tensor:
    """-log of the harmonic mean of p, from -log p: [..., F, B] -> [..., B], as `judgement.surprisal` has it."""
    return surprisals.logsumexp(dim=-2) - math.log(surprisals.shape[-2])


def leads(logits: Tensor) -> Tensor:
    """By how much the predicted class leads the next, [B, K] -> float64 [B], >= 0."""
    first, second = logits.double().topk(2, dim=1).values.unbind(dim=1)
    return first - second
