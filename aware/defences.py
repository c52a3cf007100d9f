"""Defences: what an attacker faces beside the classifier, each with slopes.

None is a copy. The fused score is read by the detectors' own code, with gradients on, and judged by the calibration's
own; a baseline is scored by its own. What has no slope of its own is given one: rounding and filters without any let
gradients straight through (`detectors.tensors.straight_through`), the 8 bits of a pixel alike; ranks have the slope of
a chord over a share of the spread of clean readings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from askance.calibration.baselines import Baseline, Need
from askance.calibration.baselines.observation import observe_batch
from askance.detectors import Detector, Tap, tap_for
from askance.detectors.ranks import leads
from askance.detectors.reader import array, as_read, read_all
from askance.detectors.tensors import rounded
from askance.judgement import Calibration, Readings
from askance.judgement.arrays import Doubles, Floats
from askance.judgement.conformal import p_value
from askance.judgement.margins import spread
from askance.screening.preprocessing import Preprocessing
from askance.screening.reading import in_numbers

CHORD = 0.05  # of the spread of clean readings, to either side: over many ranks, and short beside what an attack moves
LEVELS = 255  # of a pixel of 8 bits, above 0
LEAST_CHORD = 1e-12


def in_bytes(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as an image of 8 bits has them; gradients go straight through."""
    return rounded(pixels * LEVELS) / LEVELS


class Look(NamedTuple):
    """What a defence says of B images.

    Attributes:
        logits: [B, K], with gradients.
        suspicion: its score, float64 [B], higher = more suspicious, with gradients.
        p_values: what becomes of it, float64 [B].
        activations: of the layers that it reads, [B, ...] each, with gradients; the logits where it reads none.
    """

    logits: Tensor
    suspicion: Tensor
    p_values: Doubles
    activations: tuple[Tensor, ...]


class Defence(ABC):
    """Looks at images."""

    @abstractmethod
    def __call__(self, pixels: Tensor) -> Look:
        """Look at images [B, C, H, W] in [0, 1], of which it sees 8 bits a pixel."""


class FusedDefence(Defence):
    """The fused score of a bundle's detectors.

    Args:
        classifier: maps normalised images [B, C, H, W] to logits [B, K]; in eval mode.
        detectors: fitted, by name; those that the calibration is of.
        preprocessing: the normalisation.
        calibration: their tables.
    """

    def __init__(
        self,
        classifier: nn.Module,
        detectors: Mapping[str, Detector],
        preprocessing: Preprocessing,
        calibration: Calibration,
    ) -> None:
        self._detectors = {name: one for name, one in detectors.items() if name in calibration.tables}
        self._fusion, self._table = calibration.fused.fusion, calibration.fused.table
        self._tap = tap_for(classifier, self._detectors.values(), preprocessing.normalize)
        background = self._fusion.background
        self._chords = (CHORD * spread(background.clean[: len(background.names)].astype(np.float64))).clip(LEAST_CHORD)
        self._chord_of_margin = float(CHORD * spread(background.doubts)[0])

    def __call__(self, pixels: Tensor) -> Look:
        """As the Screen would."""
        capture = self._tap(in_bytes(pixels))
        read = read_all(self._detectors, capture)
        found = as_read(read, capture.logits)
        readings = in_numbers(found.readings, found.logits)
        parts = [name.partition("/") for name in self._fusion.names]
        components = torch.stack([read[kind].components[part] for kind, _, part in parts]).double()
        suspicion, of_components, of_margin = self._slopes(readings)
        margins = leads(capture.logits)
        # worth nothing, but for its gradient
        sloping = (of_components * (components - components.detach())).sum(dim=0)
        sloping = sloping + of_margin * (margins - margins.detach())
        activations = tuple(capture.activations[layer] for layer in self._tap.layers)
        return Look(capture.logits, torch.from_numpy(suspicion) + sloping, p_value(suspicion, self._table), activations)

    def _slopes(self, readings: Readings) -> tuple[Doubles, Tensor, Tensor]:
        """The fused score [B], and its slopes in each component [F, B] and in the margin [B]."""
        names, places = self._fusion.names, np.arange(len(self._fusion.names))
        raw, chords = readings.stacked(names).astype(np.float64), self._chords[:, None]
        # as they are, with each component higher and lower by a chord, and with two other margins
        moved = np.repeat(raw[:, None], 2 * len(names) + 3, axis=1)
        moved[places, 1 + places] += chords
        moved[places, 1 + len(names) + places] -= chords
        lower, higher, apart = _other_margins(readings.logits, self._chord_of_margin)
        logits = np.concatenate([np.tile(readings.logits, (2 * len(names) + 1, 1)), lower, higher])
        components = dict(zip(names, moved.reshape(len(names), -1), strict=True))
        every = Readings({}, components, readings.two_sided, logits)
        scores = self._fusion.score(every).reshape(2 * len(names) + 3, -1)
        up, down = scores[1 : 1 + len(names)], scores[1 + len(names) : -2]
        of_margin = (scores[-1] - scores[-2]) / apart
        return scores[0], torch.from_numpy((up - down) / (2 * chords)), torch.from_numpy(of_margin)


def _other_margins(logits: Floats, chord: float) -> tuple[Doubles, Doubles, Doubles]:
    """Logits [B, K] whose margin is less by a chord, or nothing, and greater by one; how far apart these are, [B]."""
    every, first = np.arange(len(logits)), logits.argmax(axis=1)
    lower, higher = logits.astype(np.float64), logits.astype(np.float64)
    others = lower.copy()
    others[every, first] = -np.inf
    lower[every, first] = np.maximum(lower[every, first] - chord, others.max(axis=1))
    higher[every, first] += max(chord, LEAST_CHORD)
    return lower, higher, higher[every, first] - lower[every, first]


class BaselineDefence(Defence):
    """A baseline that needs no fitting, and whose score is a tensor.

    Args:
        baseline: which.
        classifier, preprocessing: as above.
        table: its scores of clean images, sorted.
    """

    def __init__(self, baseline: Baseline, classifier: nn.Module, preprocessing: Preprocessing, table: Floats) -> None:
        self._baseline, self._table = baseline, table
        self._tap = Tap(classifier, (), preprocessing.normalize)

    def __call__(self, pixels: Tensor) -> Look:
        """As an evaluation scores it."""
        nobodys = torch.zeros(len(pixels), dtype=torch.long)
        seen = observe_batch(self._tap, in_bytes(pixels), nobodys, self._baseline.needs)
        suspicion = self._baseline.score(seen)
        return Look(seen.logits, suspicion, p_value(array(suspicion), self._table), (seen.logits,))

    @classmethod
    def suits(cls, baseline: type[Baseline]) -> bool:
        """Whether such a defence can be made of it: what is fitted by scikit-learn has no gradients."""
        return not baseline.learns() and Need.FEATURES not in baseline.needs
