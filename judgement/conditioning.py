"""Conditioning: readings less what the classifier's own answer lets expect of them.

A doubtful image has other activations than a sure one, and a shirt others than a shoe, though nobody touched either.
What is left of a reading once that is taken off speaks of manipulation rather than of doubt, and flags classes alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from askance.judgement.arrays import Doubles, Floats, Ints
from askance.judgement.margins import margins, spread

KNOTS = 5  # of the piecewise linear dependence on the margin, at evenly spaced quantiles of clean ones
CLASS_PENALTY = 20.0  # as if so many images of each class had no offset: few images shift nothing
MARGIN_PENALTY = 4.0  # the same at each knot
BEND = 3.0  # spreads from the median beyond which readings count by their logarithm
LEAST_SPREAD = 1e-12
LEAST_RESIDUAL = 0.1  # of the mean residual: what fits all but exactly, as where many are the same, is no scale
NORMAL_SPREAD = 3.29  # standard deviations that the middle nine tenths of a normal distribution reach


class Conditioning:
    """Residuals of F readings, regressed on predicted class and margin over clean images.

    A reading is first put on the scale of its median and its middle nine tenths, its tails bent by asinh. Its mean is
    then a piecewise linear function of the margin plus an offset for each class, by ridge regression; so is the
    logarithm of what is left, which the residual is divided by. A residual rises with its reading, whatever the answer.

    Args:
        knots: margins, ascending, float64 [KNOTS].
        centre: of each reading, float64 [F].
        spread: of each reading, float64 [F].
        location: coefficients of a constant, the knots and the K classes, float64 [1 + KNOTS + K, F].
        scale: the same of the logarithm of what is left.
    """

    def __init__(self, knots: Doubles, centre: Doubles, spread: Doubles, location: Doubles, scale: Doubles) -> None:
        self.knots = knots
        self.centre = centre
        self.spread = spread
        self.location = location
        self.scale = scale

    @classmethod
    def fit(cls, logits: Floats, values: Floats) -> Conditioning:
        """Regress clean readings [F, n] on the classifier's answers, logits [n, K]."""
        ordered = np.sort(values.astype(np.float64), axis=1)
        centre, widths = ordered[:, (ordered.shape[1] - 1) // 2], spread(ordered) / NORMAL_SPREAD
        empty = np.zeros((1 + KNOTS + logits.shape[1], len(ordered)))
        knots = np.quantile(margins(logits), np.linspace(0, 1, KNOTS))
        begun = cls(knots, centre, widths.clip(min=LEAST_SPREAD), empty, empty)
        design = begun._design(logits)
        bent = begun._bent(values)
        location = _ridge(design, bent)
        left = np.abs(bent - design @ location)
        scale = _ridge(design, np.log(left + LEAST_RESIDUAL * left.mean(axis=0) + LEAST_SPREAD))
        return cls(begun.knots, begun.centre, begun.spread, location, scale)

    @property
    def classes(self) -> int:
        """K, of the answers that it was fitted on."""
        return len(self.location) - 1 - KNOTS

    def arrays(self) -> dict[str, Doubles]:
        """What it was made of, by name."""
        return {name: getattr(self, name) for name in ("knots", "centre", "spread", "location", "scale")}

    def only(self, rows: NDArray[np.intp]) -> Conditioning:
        """The same of some of the readings."""
        of_readings = (self.centre[rows], self.spread[rows], self.location[:, rows], self.scale[:, rows])
        return Conditioning(self.knots, *of_readings)

    def __call__(self, logits: Floats, values: Floats) -> Doubles:
        """Residuals of readings [F, B] under answers [B, K], in units of what is usual there, float64 [F, B]."""
        hats, predicted = self._hats(logits), logits.argmax(axis=1)
        left = self._bent(values) - self._at(self.location, hats, predicted)
        residuals: Doubles = (left / np.exp(self._at(self.scale, hats, predicted))).T
        return residuals

    def _bent(self, values: Floats) -> Doubles:
        """Readings [F, B] on their own scale, [B, F]."""
        bent: Doubles = BEND * np.arcsinh((values.T - self.centre) / (BEND * self.spread))
        return bent

    def _hats(self, logits: Floats) -> Doubles:
        """How near each margin is to each knot, [B, K] -> [B, KNOTS], rows that sum to 1."""
        margin: Doubles = margins(logits).clip(self.knots[0], self.knots[-1])[:, None]
        risen = ((margin - self.knots[:-1]) / np.diff(self.knots).clip(min=LEAST_SPREAD)).clip(0, 1)
        hats: Doubles = -np.diff(risen, axis=1, prepend=1, append=0)
        return hats

    def _design(self, logits: Floats) -> Doubles:
        hats, classes = self._hats(logits), np.eye(logits.shape[1])[logits.argmax(axis=1)]
        design: Doubles = np.concatenate([np.ones_like(hats[:, :1]), hats, classes], axis=1)
        return design

    def _at(self, coefficients: Doubles, hats: Doubles, predicted: Ints) -> Doubles:
        """The regression's value for each input and reading, [B, F]."""
        # summed in a fixed order: a matrix product's last bits depend on the batch
        of_knots, of_classes = coefficients[1 : 1 + KNOTS], coefficients[1 + KNOTS :]
        of_margin = [hats[:, k, None] * row for k, row in enumerate(of_knots)]
        found: Doubles = np.add.reduce([coefficients[0] + of_classes[predicted], *of_margin])
        return found


def _ridge(design: Doubles, targets: Doubles) -> Doubles:
    penalties = np.full(design.shape[1], CLASS_PENALTY)
    penalties[0], penalties[1 : 1 + KNOTS] = LEAST_SPREAD * len(design), MARGIN_PENALTY
    coefficients = np.linalg.solve(design.T @ design + np.diag(penalties), design.T @ targets)
    return coefficients.astype(np.float64, copy=False)
