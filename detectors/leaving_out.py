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
    """Rows [..., K, K], each without two entries: its own, and that of another.

    Attributes:
        centred: the rows, less their means, [..., K, K].
        totals: of row a without entries a and b, the sum, [..., K, K].
        inverses: of row a without entries a and b, one over the norm about its mean; 0 where it does not vary,
            [..., K, K].
    """

    centred: Tensor
    totals: Tensor
    inverses: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Rows:
        """Of float rows [..., K, K]."""
        centred = _centred(rows)
        own = _diagonal(centred).unsqueeze(-1)
        return cls(centred, *_without(centred, own))

    def shuffled(self, orders: Tensor) -> Rows:
        """Of rows [K, K] and their entries in other orders, [..., K] -> [..., K, K]."""
        return Rows(*(one[orders.unsqueeze(-1), orders.unsqueeze(-2)] for one in self))

    @property
    def own(self) -> Tensor:
        """Each row's own entry, [..., K]."""
        return _diagonal(self.centred)


def matches(a: Rows, b: Rows) -> Tensor:
    """Whether the rows p and q of both, without entries p and q, match better than they cross, bool [..., K, K].

    Symmetric; what stands on the diagonal means nothing. Leading dimensions are broadcast.
    """
    left = a.centred.shape[-1] - 2
    products = a.centred @ b.centred.mT
    matched = (
        (_diagonal(products) - a.own * b.own).unsqueeze(-1) - a.centred * b.centred - a.totals * b.totals / left
    ) * (a.inverses * b.inverses)
    crossed = (
        products - a.own.unsqueeze(-1) * b.centred.mT - a.centred * b.own.unsqueeze(-2) - a.totals * b.totals.mT / left
    ) * (a.inverses * b.inverses.mT)
    return matched + matched.mT > crossed + crossed.mT + TIE


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
        return table.index_select(0, predicted).unsqueeze(1)

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


def _diagonal(tables: Tensor) -> Tensor:
    return tables.diagonal(dim1=-2, dim2=-1)


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
