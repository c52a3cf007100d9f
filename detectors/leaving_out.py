"""Leaving out: correlations of rows of which two entries are left out, for all pairs at once.

A correlation needs sums alone, and of a sum two entries are easily taken off: so K classes take K^2 numbers, not K^3.
All in float64, rows centred first, so that little is lost to cancellation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FLAT = 1e-12  # of a row's squares that must be left for it to vary; less is what was rounded off
TIE = 1e-9  # by which two sums of correlations must differ
FLAT_ENTRY = 1e-14  # squared: entries are correlations, in float32


class Rows(NamedTuple):
    """Rows [K, K], each without two entries: its own, and that of another.

    Attributes:
        centred: the rows, less their means, [K, K].
        totals: of row a without entries a and b, the sum, [K, K].
        inverses: of row a without entries a and b, one over the norm about its mean; 0 where it does not vary, [K, K].
    """

    centred: Tensor
    totals: Tensor
    inverses: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Rows:
        """Of float rows [K, K]."""
        centred = _centred(rows)
        own = centred.diagonal().unsqueeze(1)
        return cls(centred, *_without(centred, own))

    def shuffled(self, order: Tensor) -> Rows:
        """Of the same rows and their entries in another order, [K]."""
        return Rows(*(one[order][:, order] for one in self))

    @property
    def own(self) -> Tensor:
        """Each row's own entry, [K]."""
        return self.centred.diagonal()


def matches(a: Rows, b: Rows) -> Tensor:
    """Whether the rows p and q of both, without entries p and q, match better than they cross, bool [K, K].

    Symmetric; what stands on the diagonal means nothing.
    """
    left = len(a.centred) - 2
    products = a.centred @ b.centred.T
    matched = (
        (products.diagonal() - a.own * b.own).unsqueeze(1) - a.centred * b.centred - a.totals * b.totals / left
    ) * (a.inverses * b.inverses)
    crossed = (products - a.own.unsqueeze(1) * b.centred.T - a.centred * b.own - a.totals * b.totals.T / left) * (
        a.inverses * b.inverses.T
    )
    return matched + matched.T > crossed + crossed.T + TIE


def leads(similarities: Tensor, predicted: Tensor, words: Rows) -> Tensor:
    """corr(i, W_p) - corr(i, W_q), without entries p and q, for every other class q, [B, L, K]; 0 at p itself.

    Args:
        similarities: i, [B, L, K].
        predicted: p, [B].
        words: of W, [K, K].
    """
    inputs = _centred(similarities)
    at_predicted = predicted[:, None, None].expand(-1, inputs.shape[1], 1)
    own = inputs.gather(2, at_predicted)
    totals, inverses = _without(inputs, own)
    products = inputs @ words.centred.T
    left = inputs.shape[2] - 2

    def of(table: Tensor) -> Tensor:
        return table[predicted].unsqueeze(1)

    matched = (
        products.gather(2, at_predicted)
        - own * of(words.own).unsqueeze(2)
        - inputs * of(words.centred)
        - totals * of(words.totals) / left
    ) * of(words.inverses)
    crossed = (products - own * of(words.centred.T) - inputs * words.own - totals * of(words.totals.T) / left) * of(
        words.inverses.T
    )
    return (inverses * (matched - crossed)).scatter(2, at_predicted, 0.0)


def _centred(rows: Tensor) -> Tensor:
    rows = rows.double()
    return rows - rows.mean(dim=-1, keepdim=True)


def _without(centred: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Of centred rows [..., K] without `own` [..., 1] and each entry in turn: sums, and one over norms, [..., K]."""
    left = centred.shape[-1] - 2
    totals = -own - centred
    whole = centred.square().sum(dim=-1, keepdim=True)
    squares = whole - own.square() - centred.square() - totals.square() / left
    varies = squares > FLAT * whole + FLAT_ENTRY * left
    return totals, torch.where(varies, squares.clamp_min(FLAT_ENTRY).rsqrt(), 0.0)
