"""Screen: a classifier, its detectors and their calibration in one call, from a batch of images to verdicts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from detectors.conformal import p_value
from detectors.detector import Detector, Reading, tap_for
from detectors.errors import AskanceError, ConfigError
from detectors.fusion import Fusion, all_components
from detectors.preprocessing import Preprocessing
from detectors.tap import Capture

FUSED = "fused"
SINGLE_PASS = "fused_single_pass"
Observe = Callable[[str, float], None]  # (stage, seconds)


class Verdict(StrEnum):
    """What the fused p-value says."""

    CLEAN = "CLEAN"
    SUSPECT = "SUSPECT"
    ADVERSARIAL = "ADVERSARIAL"


class Levels(BaseModel):
    """The false-positive targets: a clean input is flagged at a level with at most this probability."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suspect: float = 0.05
    adversarial: float = 0.01

    @model_validator(mode="after")
    def _in_order(self) -> Levels:
        if not 0 < self.adversarial <= self.suspect < 1:
            raise ValueError("levels must satisfy 0 < adversarial <= suspect < 1")
        return self

    def flags(self, p: float) -> tuple[str, ...]:
        """The names of the levels that a p-value meets."""
        return tuple(name for name, alpha in self.items() if p <= alpha)

    def items(self) -> tuple[tuple[str, float], ...]:
        """(name, target), the loosest first."""
        return ("suspect", self.suspect), ("adversarial", self.adversarial)

    def verdict(self, p: float) -> Verdict:
        """The verdict of a fused p-value."""
        if p <= self.adversarial:
            return Verdict.ADVERSARIAL
        return Verdict.SUSPECT if p <= self.suspect else Verdict.CLEAN


@dataclass(frozen=True)
class DetectorVerdict:
    """One detector's word on one input.

    Attributes:
        name: the detector's kind, or "fused".
        score: higher = more suspicious.
        p_value: conformal, in (0, 1].
        flags: the levels met, of "suspect" and "adversarial".
        explanation: a small dict for people, if asked for.
    """

    name: str
    score: float
    p_value: float
    flags: tuple[str, ...]
    explanation: dict[str, Any] | None = None


@dataclass(frozen=True)
class Prediction:
    """The classifier's answer for one input.

    Attributes:
        index: the predicted class.
        label: its name.
        probabilities: softmax of the logits, K numbers.
    """

    index: int
    label: str
    probabilities: tuple[float, ...]

    @property
    def probability(self) -> float:
        """The predicted class's probability."""
        return self.probabilities[self.index]


@dataclass(frozen=True)
class Screening(Prediction):
    """The answer for one input together with what the detectors say of it.

    Attributes:
        verdict: of the fused p-value.
        fused: the fused score and p-value.
        detectors: each detector's word, in the bundle's order.
    """

    verdict: Verdict
    fused: DetectorVerdict
    detectors: tuple[DetectorVerdict, ...]


class ScreenError(AskanceError):
    """One input could not be screened; its batch mates were."""


@dataclass(frozen=True)
class Fused:
    """A fused score and its conformal table.

    Attributes:
        fusion: the score, tabulated on the calibration split.
        table: sorted clean scores [m] of the fusion split.
    """

    fusion: Fusion
    table: Tensor


@dataclass(frozen=True)
class Calibration:
    """The conformal tables.

    Attributes:
        levels: the false-positive targets.
        tables: {detector: sorted clean scores [n]} of the calibration split.
        fused: of all detectors.
        single_pass: of the detectors that need no altered copies of the input; None where none needs them.
    """

    levels: Levels
    tables: Mapping[str, Tensor]
    fused: Fused
    single_pass: Fused | None = None

    def in_a_single_pass(self) -> Calibration:
        """The same without the detectors that need altered copies."""
        if self.single_pass is None:
            return self
        kept = {name.partition("/")[0] for name in self.single_pass.fusion.names}
        tables = {name: values for name, values in self.tables.items() if name in kept}
        return replace(self, tables=tables, fused=self.single_pass, single_pass=None)


def read_all(detectors: Mapping[str, Detector], capture: Capture, observe: Observe | None = None) -> dict[str, Reading]:
    """Every detector's Reading of a Capture, {name: Reading}; `observe` gets each one's seconds."""
    readings = {}
    for name, detector in detectors.items():
        start = time.perf_counter()
        readings[name] = detector.read(capture)
        if observe is not None:
            observe(name, time.perf_counter() - start)
    return readings


class Screen:
    """From a batch of images to predictions and verdicts. Safe to call from several threads.

    Args:
        classifier: maps normalised images [B, C, H, W] to logits [B, K]; in eval mode.
        preprocessing: the input's shape and normalisation.
        class_names: K names.
        detectors: fitted, by name.
        calibration: their conformal tables.
    """

    def __init__(
        self,
        classifier: nn.Module,
        preprocessing: Preprocessing,
        class_names: Sequence[str],
        detectors: Mapping[str, Detector],
        calibration: Calibration,
    ) -> None:
        self.preprocessing = preprocessing
        self.class_names = tuple(class_names)
        self.detectors = dict(detectors)
        self.calibration = calibration
        self.tap = tap_for(classifier, self.detectors.values(), preprocessing.normalize)

    @torch.no_grad()
    def __call__(
        self, images: Tensor, explain: Sequence[bool] | bool = False, observe: Observe | None = None
    ) -> list[Screening | ScreenError]:
        """Screen a batch with one classifier call.

        Args:
            images: [B, C, H, W], float32 in [0, 1].
            explain: whether to explain, for all or one each.
            observe: called with (stage, seconds) for "classify", every detector, and "fused" (with the p-values).

        Returns:
            One Screening per input, or the ScreenError that befell it alone.

        Raises:
            ConfigError: there are not as many class names as outputs.
        """
        start = time.perf_counter()
        capture = self.tap(images)
        if observe is not None:
            observe("classify", time.perf_counter() - start)
        predictions = self._predictions(capture.logits)
        readings = read_all(self.detectors, capture, observe)
        wanted = [explain] * len(capture) if isinstance(explain, bool) else list(explain)
        explanations = {
            name: detector.explain_reading(readings[name], [i for i, w in enumerate(wanted) if w])
            for name, detector in self.detectors.items()
        }
        start = time.perf_counter()
        fused = self.calibration.fused.fusion.score(all_components(readings))
        scores = {name: reading.score for name, reading in readings.items()} | {FUSED: fused}
        tables = {**self.calibration.tables, FUSED: self.calibration.fused.table}
        columns = {
            name: (values.tolist(), p_value(values.to(tables[name].dtype), tables[name]).tolist())
            for name, values in scores.items()
        }
        if observe is not None:
            observe(FUSED, time.perf_counter() - start)
        finite = torch.stack([torch.isfinite(values) for values in scores.values()]).all(dim=0).tolist()

        results: list[Screening | ScreenError] = []
        for i, prediction in enumerate(predictions):
            if isinstance(prediction, ScreenError):
                results.append(prediction)
                continue
            if not finite[i]:
                results.append(ScreenError("a detector gave NaN or infinity for this image"))
                continue
            words = {
                name: DetectorVerdict(
                    name,
                    values[i],
                    ps[i],
                    self.calibration.levels.flags(ps[i]),
                    explanations[name].get(i) if name != FUSED else None,
                )
                for name, (values, ps) in columns.items()
            }
            results.append(
                Screening(
                    index=prediction.index,
                    label=prediction.label,
                    probabilities=prediction.probabilities,
                    verdict=self.calibration.levels.verdict(words[FUSED].p_value),
                    fused=words[FUSED],
                    detectors=tuple(words[name] for name in self.detectors),
                )
            )
        return results

    @torch.no_grad()
    def classify(self, images: Tensor) -> list[Prediction | ScreenError]:
        """The classifier's answers alone, for images [B, C, H, W] in [0, 1]; otherwise as a call.

        Raises:
            ConfigError: there are not as many class names as outputs.
        """
        return self._predictions(self.tap.classify(images))

    def _predictions(self, logits: Tensor) -> list[Prediction | ScreenError]:
        if logits.shape[1] != len(self.class_names):
            raise ConfigError(f"the classifier has {logits.shape[1]} outputs for {len(self.class_names)} class names")
        finite = torch.isfinite(logits).all(dim=1).tolist()
        probabilities, predicted = logits.softmax(dim=1).tolist(), logits.argmax(dim=1).tolist()
        return [
            Prediction(index, self.class_names[index], tuple(shares))
            if ok
            else ScreenError("the classifier gave NaN or infinity for this image")
            for ok, index, shares in zip(finite, predicted, probabilities, strict=True)
        ]

    def close(self) -> None:
        """Remove the hooks from the classifier."""
        self.tap.close()
