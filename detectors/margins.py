"""Margins: which images of a batch are judged again alone, because the last bits of their numbers decide.

The same image gives other last bits in another batch: kernels sum in another order. Nearly always that changes nothing
that anybody sees. Where it could change the class, a flag or the verdict, the image is judged once more by itself, so
that its answer is a function of the image alone: nobody's verdict depends on who sends what beside it.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from askance.detectors.conformal import reach

NOISE = 1e-3
"""How far a reading may be off, in units of the spread of clean ones (their middle nine tenths), and a logit in units
of the largest. A batch moves them by some millionths; more is for kernels and devices that nobody has tried."""
TIE = 1e-5
"""How far two similarities, in [-1, 1], may be apart and still be a tie but for noise."""


def spread(tables: Tensor) -> Tensor:
    """How far the middle nine tenths of sorted clean values reach, [n] -> [] or [F, n] -> [F]; where most of them are
    ties, a tenth of how far all of them do.
    """
    return torch.maximum(reach(tables, round(0.05 * (tables.shape[-1] - 1))), reach(tables, 0) / 10)


def around(values: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the most that readings may be, [B] or [F, B] by tables [n] or [F, n], in their own type."""
    off = NOISE * (spread(tables).unsqueeze(-1) + NOISE * values.abs())
    return values - off, values + off


def nudged(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, K] with the predicted class's as they are, as low and as high as they may be.

    As low as the next class's at most, where the margin is least: below that another class is predicted, and leads.
    """
    first = logits.argmax(dim=1, keepdim=True)
    off = NOISE * logits.abs().amax(dim=1, keepdim=True)
    leading = logits.gather(1, first)
    next_one = logits.scatter(1, first, -torch.inf).amax(dim=1, keepdim=True)
    lowest = logits.scatter(1, first, torch.maximum(leading - off, next_one))
    return logits, lowest, logits.scatter(1, first, leading + off)


def may_change(low: Tensor, high: Tensor, levels: Collection[float]) -> Tensor:
    """Whether an interval of p-values meets a level at one end and not at the other, [B] bool.

    Args:
        low, high: p-values, [B].
        levels: each met by what does not exceed it.
    """
    return torch.stack([(low <= alpha) != (high <= alpha) for alpha in levels]).any(dim=0)


def is_close(logits: Tensor) -> Tensor:
    """Whether two classes are as likely as each other, but for noise: logits [B, K] -> [B] bool."""
    if logits.shape[1] < 2:
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    first, second = logits.topk(2, dim=1).values.unbind(dim=1)
    return first - second <= NOISE * logits.abs().amax(dim=1)
