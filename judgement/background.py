"""Background: what clean images look like to the detectors, and how surprising another one is beside them."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from askance.errors import CalibrationError, listed, printable
from askance.judgement.arrays import Doubles, Floats
from askance.judgement.conditioning import Conditioning
from askance.judgement.conformal import table
from askance.judgement.margins import NOISE, Bounds, around, margins, nudged, spread
from askance.judgement.readings import Readings
from askance.judgement.surprisal import Sides, Surprisal


class Surprisals(NamedTuple):
    """-log p of B inputs' readings, float64, >= 0.

    Attributes:
        beside_clean: of every reading above, then below, among clean images, [4F, B].
        speaking: of those sides that their detectors call suspicious, the least among clean and among benignly changed
            images, [S, B].
        plain: on the same sides, of the components as they are, among clean images alone, [P, B].
        doubt: [B].
    """

    beside_clean: Doubles
    speaking: Doubles
    plain: Doubles
    doubt: Doubles


class Background:
    """Tables of clean readings, and of readings of images that were changed a little and by nobody's design.

    Of each of F components there are two readings: as it is, and less what the classifier's answer lets expect of it
    (`Conditioning`). One more is doubt: how little the predicted class leads the next.

    Args:
        names: of the components, in order.
        two_sided: those among them that can be untypical either way; the others point like their detector's score.
        conditioning: of the components on the answers.
        clean: sorted, float32 [2F, n]: the components, then what conditioning leaves of them.
        benign: the same of images changed benignly, [2F, m]; m may be 0.
        doubts: less the margins of the clean images, sorted, float32 [1, n].
    """

    def __init__(
        self,
        names: tuple[str, ...],
        two_sided: frozenset[str],
        conditioning: Conditioning,
        clean: NDArray[np.float32],
        benign: NDArray[np.float32],
        doubts: NDArray[np.float32],
    ) -> None:
        self.names = names
        self.two_sided = two_sided & set(names)
        self.conditioning = conditioning
        self.clean = clean
        self.benign = benign
        self.doubts = doubts
        self._spreads = spread(clean[: len(names)])
        lower = np.array([name in self.two_sided for name in names])
        sides = np.concatenate([np.ones_like(lower), np.ones_like(lower), lower, lower])
        as_they_are = np.tile(np.concatenate([np.ones_like(lower), np.zeros_like(lower)]), 2)
        self._speaking, self._plain = sides.nonzero()[0], (sides & as_they_are).nonzero()[0]

    @classmethod
    def fit(cls, clean: Readings, benign: Readings | None = None) -> Background:
        """Tabulate readings of a calibration split, and of the same images benignly changed.

        Raises:
            CalibrationError: there are none, or some are not finite.
        """
        names = tuple(clean.components)
        raw = clean.stacked(names)
        table(raw)  # refuses what cannot be regressed
        conditioning = Conditioning.fit(clean.logits, raw)
        of_clean, of_benign = table(_completed(conditioning, raw, clean.logits)), np.empty((2 * len(names), 0), "f4")
        if benign is not None:
            of_benign = table(_completed(conditioning, benign.stacked(names), benign.logits)[:-1])
        return cls(names, clean.two_sided, conditioning, of_clean[:-1], of_benign, of_clean[-1:])

    @cached_property
    def _among(self) -> Surprisal:
        """Of all readings and of doubt; made when it is asked for, because it takes more memory than the tables."""
        of_clean = np.concatenate([self.clean, self.doubts])
        # a benign change excuses no doubt: what stands for it is never asked for
        of_benign = [np.concatenate([self.benign, np.zeros_like(self.benign[:1])])] if self.benign.shape[1] else []
        return Surprisal([of_clean, *of_benign], (2 * NOISE * spread(of_clean)).astype(np.float32))

    @property
    def classes(self) -> int:
        """K, of the classifier that was read."""
        return self.conditioning.classes

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What it was made of, by name: what a bundle holds of it."""
        two_sided = np.array([name in self.two_sided for name in self.names])
        of_conditioning = {f"conditioning.{name}": values for name, values in self.conditioning.arrays().items()}
        own = {"clean": self.clean, "benign": self.benign, "doubts": self.doubts, "two_sided": two_sided}
        return own | of_conditioning

    def only(self, names: tuple[str, ...]) -> Background:
        """The same of some of the components."""
        rows = np.array([self.names.index(name) for name in names], dtype=np.intp)
        both = np.concatenate([rows, rows + len(self.names)])
        conditioning = self.conditioning.only(rows)
        return Background(names, self.two_sided, conditioning, self.clean[both], self.benign[both], self.doubts)

    def values(self, readings: Readings) -> NDArray[np.float32]:
        """The components, what conditioning leaves of them, and doubt, float32 [2F + 1, B].

        Raises:
            CalibrationError: a component is missing.
        """
        return _completed(self.conditioning, self._raw(readings), readings.logits)

    def bounds(self, readings: Readings) -> Bounds[NDArray[np.float32]]:
        """The same, and as low and as high as the margins of the components and of the logits allow."""
        raw, answers = self._raw(readings), nudged(readings.logits)
        low, high = around(raw, self._spreads)
        ways = len(answers)
        completed = _completed(
            self.conditioning,
            np.concatenate([raw, *[low] * ways, *[high] * ways], axis=1),
            np.concatenate([readings.logits, *answers, *answers]),
        ).reshape(-1, 1 + 2 * ways, len(readings.logits))
        values, least, most = completed[:, 0], completed[:, 1 : 1 + ways], completed[:, 1 + ways :]
        return Bounds(values, least.min(axis=1), most.max(axis=1))

    def _raw(self, readings: Readings) -> NDArray[np.float32]:
        if missing := [name for name in self.names if name not in readings.components]:
            raise CalibrationError(f"the fused score was calibrated on {printable(listed(missing))}, which nobody read")
        return readings.stacked(self.names)

    def surprisals(self, values: NDArray[np.float32]) -> Surprisals:
        """How surprising `values` are."""
        clean, *benign = self._among(values)
        beside = _of_readings(clean)
        speaking = beside[self._speaking]
        for changed in benign:
            speaking = np.minimum(speaking, _of_readings(changed)[self._speaking])
        return Surprisals(beside, speaking, beside[self._plain], clean.above[-1])


def _of_readings(sides: Sides) -> Doubles:
    """All but doubt, above and then below, [4F, B]."""
    return np.concatenate([sides.above[:-1], sides.below[:-1]])


def _completed(conditioning: Conditioning, raw: NDArray[np.float32], logits: Floats) -> NDArray[np.float32]:
    left = conditioning(logits, raw)
    completed = np.empty((2 * len(raw) + 1, raw.shape[1]), dtype=np.float32)
    completed[: len(raw)], completed[len(raw) : -1], completed[-1] = raw, left, -margins(logits)
    return completed
