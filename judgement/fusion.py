"""Fusion: one score of all detectors' components, by how surprising they are."""

from __future__ import annotations

import math

import numpy as np

from askance.answers import DOUBTFUL, FUSED, UNFAMILIAR
from askance.errors import CalibrationError
from askance.judgement.arrays import Doubles, logsumexp
from askance.judgement.background import Background, Surprisals
from askance.judgement.margins import Bounds, margins, nudged
from askance.judgement.readings import Readings
from askance.judgement.surprisal import harmonic_mean

EVEN_ODDS = 0.003  # the p at which an untrained opinion gives even odds
TAIL = 0.95  # the quantile of clean scores that is to be the same whatever class is predicted
LAST_BITS = 1e-9  # by which a sum of surprisals may differ in another batch: exact ties are common among ranks
FEW = 50.0  # clean images of a class by which half of what it differs by is believed


def roots(surprisals: Doubles) -> Doubles:
    """sqrt(1 + 2 u) - 1 of surprisals u >= 0: about what a standard normal reading would be that is so untypical; less
    steep for the typical ones, whose ranks are noise.
    """
    found: Doubles = np.sqrt(1 + 2 * surprisals) - 1
    return found


class Fusion:
    """Fused score = log of the odds of an attack, added over opinions: log(sum over e of exp(o_e)).

    Two opinions are untrained, and always there: -log of the harmonic mean p of all readings whose suspicious side
    their papers fix (each p the greatest among clean and among benignly changed images), and -log p of the doubt, both
    plus log 0.003: even odds where that p is .3%. A trained opinion is a logistic regression
    o_e = b_e + sum w_es (sqrt(1 + 2 u_s) - 1) on the surprisals u_s of all readings, above and below
    (`calibration.weighing`): it has learned one kind of attack, whatever its budgets. Its
    weights may have either sign, for readings share much of their noise; but an opinion that finds an input innocent
    does not silence the others: the score is never below the untrained ones. Of all that, what clean images of the
    predicted class have more than others is taken off, or one class would bear most of the false alarms.

    Its own conformal calibration on its own split turns the score into a p-value, whatever the dependence between
    components and however the weights were found.

    Args:
        background: of the F components.
        weights: of the E trained opinions, float64 [E, 4F].
        biases: theirs, float64 [E].
        offsets: what is taken off where each of K classes is predicted, float64 [K]; None takes nothing off.
    """

    def __init__(
        self, background: Background, weights: Doubles, biases: Doubles, offsets: Doubles | None = None
    ) -> None:
        expected = (len(biases), 4 * len(background.names))
        if weights.shape != expected:
            raise CalibrationError(f"fusion takes weights of shape {list(expected)}, got {list(weights.shape)}")
        self.background = background
        self.weights = weights
        self.biases = biases
        self.offsets = np.zeros(background.classes) if offsets is None else offsets

    @classmethod
    def untrained(cls, background: Background) -> Fusion:
        """Without trained opinions."""
        return cls(background, np.empty((0, 4 * len(background.names))), np.empty(0))

    def levelled(self, clean: Readings) -> Fusion:
        """The same with offsets by which clean images of every predicted class reach as high.

        Those of rare classes are shrunk towards none: n / (n + 50) of what n images differ by.
        """
        scores, predicted = self.score(clean), clean.predicted
        everywhere, offsets = np.quantile(scores, TAIL), np.zeros_like(self.offsets)
        for index in np.unique(predicted):
            own = scores[predicted == index]
            offsets[index] = (np.quantile(own, TAIL) - everywhere) * len(own) / (len(own) + FEW)
        return Fusion(self.background, self.weights, self.biases, self.offsets + offsets)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the F components, in order."""
        return self.background.names

    def score(self, readings: Readings) -> Doubles:
        """Fused scores, float64 [B], higher = more suspicious.

        Raises:
            CalibrationError: a component is missing.
        """
        return self.scores(readings)[FUSED]

    def scores(self, readings: Readings) -> dict[str, Doubles]:
        """Fused scores, and how unfamiliar and how doubtful images are, {name: float64 [B]}, higher = more so.

        Unfamiliar is -log of the harmonic mean p of the components as they are, on the sides that their detectors call
        suspicious, among clean images alone: drift and other cameras are to show, so that neither the classifier's
        answer nor a benign change excuses anything. Doubtful is less the margin.

        Raises:
            CalibrationError: a component is missing.
        """
        return self._scores(readings, self.background.surprisals(self.background.values(readings)))

    def _scores(self, readings: Readings, found: Surprisals) -> dict[str, Doubles]:
        added = _added(found, _weighed(self.weights, roots(found.beside_clean)) + self.biases[:, None])
        return {
            FUSED: added - self._offset(readings),
            UNFAMILIAR: harmonic_mean(found.plain),
            DOUBTFUL: -margins(readings.logits),
        }

    def features(self, readings: Readings) -> Doubles:
        """What trained opinions weigh, float64 [4F, B].

        Raises:
            CalibrationError: a component is missing.
        """
        return roots(self.background.surprisals(self.background.values(readings)).beside_clean)

    def _offset(self, readings: Readings) -> Doubles:
        return self.offsets[readings.predicted]

    def bounds(self, readings: Readings) -> dict[str, Bounds[Doubles]]:
        """Each of `scores` with the least and the most it may be, [B] each, for components and logits off by their
        margins.

        What conditioning leaves of a component, and with it each surprisal, rises or falls with the component: the ends
        of a sum are reached at the ends of its terms. The predicted class is taken as it is, unless another is as close
        as that (`is_close`).
        """
        bounds = self.background.bounds(readings)
        # what is searched for side by side lies side by side: most of a search's time goes into cold memory
        every = self.background.surprisals(np.stack(bounds, axis=-1).reshape(len(bounds.value), -1))
        thirds = [np.moveaxis(part.reshape(*part.shape[:-1], -1, len(bounds)), -1, 0) for part in every]
        found, one, other = (Surprisals(*parts) for parts in zip(*thirds, strict=True))
        low = Surprisals(*map(np.minimum, one, other))
        high = Surprisals(*map(np.maximum, one, other))
        up, down = self.weights.clip(min=0), self.weights.clip(max=0)
        least, most = roots(low.beside_clean), roots(high.beside_clean)
        doubts = np.stack([-margins(logits) for logits in nudged(readings.logits)])
        scores = self._scores(readings, found)
        biases, offset = self.biases[:, None], self._offset(readings)
        return {
            FUSED: Bounds(
                scores[FUSED],
                _added(low, _weighed(up, least) + _weighed(down, most) + biases) - offset - LAST_BITS,
                _added(high, _weighed(up, most) + _weighed(down, least) + biases) - offset + LAST_BITS,
            ),
            UNFAMILIAR: Bounds(
                scores[UNFAMILIAR], harmonic_mean(low.plain) - LAST_BITS, harmonic_mean(high.plain) + LAST_BITS
            ),
            DOUBTFUL: Bounds(scores[DOUBTFUL], doubts.min(axis=0), doubts.max(axis=0)),
        }


def _weighed(weights: Doubles, features: Doubles) -> Doubles:
    # summed in a fixed order: a matrix product's last bits depend on the batch, and ranks on the last bits
    by_input = np.ascontiguousarray(features.T)[:, None]
    weighed: Doubles = (by_input * weights).sum(axis=2).T
    return weighed


def _added(found: Surprisals, trained: Doubles) -> Doubles:
    untrained = np.stack([harmonic_mean(found.speaking), found.doubt]) + math.log(EVEN_ODDS)
    return logsumexp(np.concatenate([trained, untrained]))
