"""Conditioning: readings less what the classifier's own answer lets expect of them.

A doubtful image has other activations than a sure one, and a shirt others than a shoe, though nobody touched either.
What is left of a reading once that is taken off speaks of manipulation rather than of doubt, and flags classes alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from askance.detectors.margins import spread

KNOTS = 5  # of the piecewise linear dependence on the margin, at evenly spaced quantiles of clean ones
CLASS_PENALTY = 20.0  # as if so many images of each class had no offset: few images shift nothing
MARGIN_PENALTY = 4.0  # the same at each knot
BEND = 3.0  # spreads from the median beyond which readings count by their logarithm
LEAST_SPREAD = 1e-12
LEAST_RESIDUAL = 0.1  # of the mean residual: what fits all but exactly, as where many are the same, is no scale
NORMAL_SPREAD = 3.29  # standard deviations that the middle nine tenths of a normal distribution reach


def margins(logits: Tensor) -> Tensor:
    """By how much the predicted class leads the next, [B, K] -> float64 [B], >= 0."""
    first, second = logits.double().topk(2, dim=1).values.unbind(dim=1)
    return first - second


class Conditioning(nn.Module):
    """Residuals of F readings, regressed on predicted class and margin over clean images.

    A reading is first put on the scale of its median and its middle nine tenths, its tails bent by asinh. Its mean is
    then a piecewise linear function of the margin plus an offset for each class, by ridge regression; so is the
    logarithm of what is left, which the residual is divided by. A residual rises with its reading, whatever the answer.

    Args:
        knots: margins, ascending, float64 [KNOTS].
        centre, spread: of each reading, float64 [F].
        location, scale: coefficients of a constant, the knots and the K classes, float64 [1 + KNOTS + K, F].
    """

    knots: Tensor
    centre: Tensor
    spread: Tensor
    location: Tensor
    scale: Tensor

    def __init__(self, knots: Tensor, centre: Tensor, spread: Tensor, location: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("knots", knots)
        self.register_buffer("centre", centre)
        self.register_buffer("spread", spread)
        self.register_buffer("location", location)
        self.register_buffer("scale", scale)

    @classmethod
    def fit(cls, logits: Tensor, values: Tensor) -> Conditioning:
        """Regress clean readings [F, n] on the classifier's answers, logits [n, K]."""
        y = values.double()
        centre, widths = y.median(dim=1).values, spread(y.sort(dim=1).values) / NORMAL_SPREAD
        shares = torch.linspace(0, 1, KNOTS, dtype=torch.float64, device=y.device)
        empty = torch.zeros(1 + KNOTS + logits.shape[1], len(y), dtype=torch.float64, device=y.device)
        begun = cls(margins(logits).quantile(shares), centre, widths.clamp_min(LEAST_SPREAD), empty, empty)
        design = begun._design(logits)
        bent = begun._bent(y)
        location = _ridge(design, bent)
        left = (bent - design @ location).abs()
        scale = _ridge(design, (left + LEAST_RESIDUAL * left.mean(dim=0) + LEAST_SPREAD).log())
        return cls(begun.knots, begun.centre, begun.spread, location, scale)

    @property
    def classes(self) -> int:
        """K, of the answers that it was fitted on."""
        return len(self.location) - 1 - KNOTS

    def only(self, rows: Tensor) -> Conditioning:
        """The same of some of the readings."""
        of_readings = (self.centre[rows], self.spread[rows], self.location[:, rows], self.scale[:, rows])
        return Conditioning(self.knots, *of_readings)

    def forward(self, logits: Tensor, values: Tensor) -> Tensor:
        """Residuals of readings [F, B] under answers [B, K], in units of what is usual there, float64 [F, B]."""
        hats, predicted = self._hats(logits), logits.argmax(dim=1)
        return (
            (self._bent(values.double()) - self._at(self.location, hats, predicted))
            / self._at(self.scale, hats, predicted).exp()
        ).T

    def _bent(self, values: Tensor) -> Tensor:
        """Readings [F, B] on their own scale, [B, F]."""
        return BEND * ((values.T - self.centre) / (BEND * self.spread)).asinh()

    def _hats(self, logits: Tensor) -> Tensor:
        """How near each margin is to each knot, [B, K] -> [B, KNOTS], rows that sum to 1."""
        margin = torch.minimum(torch.maximum(margins(logits), self.knots[0]), self.knots[-1]).unsqueeze(1)
        width = self.knots.diff().clamp_min(LEAST_SPREAD)
        risen = ((margin - self.knots[:-1]) / width).clamp(0, 1)
        return torch.cat([torch.ones_like(margin), risen], dim=1) - torch.cat([risen, torch.zeros_like(margin)], dim=1)

    def _design(self, logits: Tensor) -> Tensor:
        classes = torch.eye(logits.shape[1], dtype=torch.float64, device=logits.device)[logits.argmax(dim=1)]
        hats = self._hats(logits)
        return torch.cat([torch.ones_like(hats[:, :1]), hats, classes], dim=1)

    def _at(self, coefficients: Tensor, hats: Tensor, predicted: Tensor) -> Tensor:
        """The regression's value for each input and reading, [B, F]."""
        # summed in a fixed order: a matrix product's last bits depend on the batch
        of_margin = (hats.unsqueeze(2) * coefficients[1 : 1 + KNOTS]).sum(dim=1)
        found: Tensor = coefficients[0] + of_margin + coefficients[1 + KNOTS :][predicted]
        return found


def _ridge(design: Tensor, targets: Tensor) -> Tensor:
    penalties = torch.full((design.shape[1],), CLASS_PENALTY, dtype=torch.float64, device=design.device)
    penalties[0], penalties[1 : 1 + KNOTS] = LEAST_SPREAD * len(design), MARGIN_PENALTY
    coefficients: Tensor = torch.linalg.solve(design.T @ design + penalties.diag(), design.T @ targets)
    return coefficients
