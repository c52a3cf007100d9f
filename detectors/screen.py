"""Screen: a classifier, its detectors and their calibration in one call, from a batch of images to verdicts."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from askance.answers import (
    DOUBTFUL,
    FUSED,
    MANIPULATED,
    UNFAMILIAR,
    UNSCREENED,
    Answer,
    DetectorVerdict,
    Prediction,
    Reason,
    Screening,
    Verdict,
)
from askance.detectors.background import Background
from askance.detectors.conditioning import margins
from askance.detectors.conformal import least_favourable, p_value, table
from askance.detectors.detector import Detector, Reading, tap_for
from askance.detectors.fusion import Fusion
from askance.detectors.margins import around, is_close, may_change
from askance.detectors.preprocessing import Preprocessing
from askance.detectors.readings import Readings
from askance.detectors.tap import Capture
from askance.errors import ConfigError, ScreenError

SINGLE_PASS = "fused_single_pass"
MOST_FLAGGED = 0.5  # of clean inputs: a level above it says nothing
Observe = Callable[[str, float], None]  # (stage, seconds)


class Levels(BaseModel):
    """The false-positive targets: a clean input is flagged at a level with at most this probability."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suspect: float = 0.05
    adversarial: float = 0.01

    @model_validator(mode="after")
    def _in_order(self) -> Levels:
        if not 0 < self.adversarial <= self.suspect <= MOST_FLAGGED:
            raise ValueError(f"levels must satisfy 0 < adversarial <= suspect <= {MOST_FLAGGED:g}")
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
class Fused:
    """A fused score and its conformal table.

    Attributes:
        fusion: the score, tabulated on the calibration split.
        table: sorted scores [m] of the fusion split, those of its benignly changed images where they are higher.
        unfamiliar: how unfamiliar its clean images are to the same components, sorted, float64 [m].
    """

    fusion: Fusion
    table: Tensor
    unfamiliar: Tensor

    def to(self, device: str | torch.device) -> Fused:
        """The same on another device."""
        return Fused(self.fusion.to(device), self.table.to(device), self.unfamiliar.to(device))


@dataclass(frozen=True)
class Calibration:
    """The conformal tables.

    Attributes:
        levels: the false-positive targets.
        tables: {detector: sorted clean scores [n]} of the calibration split.
        fused: of all detectors.
        doubtful: how doubtful the clean images of the fusion split are, sorted, float64 [m].
        single_pass: of the detectors that need no views of the input; None where none needs them.
    """

    levels: Levels
    tables: Mapping[str, Tensor]
    fused: Fused
    doubtful: Tensor
    single_pass: Fused | None = None

    @property
    def reasons(self) -> dict[str, Tensor]:
        """The tables of the reasons beside `MANIPULATED`, which is the fused score: {reason: sorted [m]}."""
        return {UNFAMILIAR: self.fused.unfamiliar, DOUBTFUL: self.doubtful}

    @property
    def judged(self) -> dict[str, Tensor]:
        """The tables of what a fusion gives, {name: sorted [m]}: the fused score's own, and those of the reasons."""
        return {FUSED: self.fused.table, **self.reasons}

    @classmethod
    def fit(
        cls,
        calibrate: Readings,
        fuse: Readings,
        levels: Levels | None = None,
        *,
        benign: tuple[Readings, Sequence[Readings]] | None = None,
        viewers: Collection[str] = (),
        train: Callable[[Fusion], Fusion] | None = None,
    ) -> Calibration:
        """Tabulate clean readings of two splits that nothing was fitted on, disjoint from each other.

        Args:
            calibrate: of the split that each detector's p-values, and the fused score's components, go by.
            fuse: of the split that the fused score's p-value goes by.
            levels: the false-positive targets; None takes the defaults.
            benign: the same two of images changed benignly: what suspicions are held against, and by change what is to
                be flagged no oftener than clean images are, if anything.
            viewers: the detectors that need altered views of the input; with some, there is a single-pass calibration
                without them.
            train: gives an untrained Fusion its trained opinions; None leaves it untrained.

        Raises:
            CalibrationError: there are no readings, or some are not finite.
        """
        background = Background.fit(calibrate, None if benign is None else benign[0])

        def fused(names: tuple[str, ...]) -> Fused:
            fusion = Fusion.untrained(background.only(names))
            fusion = (fusion if train is None else train(fusion)).levelled(calibrate)
            of_clean = {name: table(scores) for name, scores in fusion.scores(fuse).items()}
            mild, least = () if benign is None else benign[1], of_clean[FUSED]
            if mild:
                least = least_favourable(least, [table(fusion.score(change)) for change in mild])
            return Fused(fusion, least, of_clean[UNFAMILIAR])

        names = background.names
        alone = tuple(name for name in names if name.partition("/")[0] not in viewers)
        return cls(
            Levels() if levels is None else levels,
            {name: table(scores) for name, scores in calibrate.scores.items()},
            fused(names),
            table(-margins(fuse.logits)),
            fused(alone) if viewers else None,
        )

    def to(self, device: str | torch.device) -> Calibration:
        """The same on another device."""
        return replace(
            self,
            tables={name: values.to(device) for name, values in self.tables.items()},
            fused=self.fused.to(device),
            doubtful=self.doubtful.to(device),
            single_pass=None if self.single_pass is None else self.single_pass.to(device),
        )

    def in_a_single_pass(self) -> Calibration:
        """The same without the detectors that need views."""
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
        bundle_id: of the bundle that all this comes from; each answer names it.
    """

    def __init__(
        self,
        classifier: nn.Module,
        preprocessing: Preprocessing,
        class_names: Sequence[str],
        detectors: Mapping[str, Detector],
        calibration: Calibration,
        bundle_id: str = "",
    ) -> None:
        self.bundle_id = bundle_id
        self.preprocessing = preprocessing
        self.class_names = tuple(class_names)
        self.detectors = dict(detectors)
        self.calibration = calibration
        self.tap = tap_for(classifier, self.detectors.values(), preprocessing.normalize)

    @torch.no_grad()
    def __call__(
        self, images: Tensor, explain: Sequence[bool] | bool = False, observe: Observe | None = None
    ) -> list[Answer | ScreenError]:
        """Screen a batch with one classifier call.

        Args:
            images: [B, C, H, W], float32 in [0, 1].
            explain: whether to explain, for all or one each.
            observe: called with (stage, seconds) for "classify", every detector, and "fused" (with the p-values).

        Returns:
            One Answer per input, or the ScreenError that befell it alone.

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
        read = Readings.of_batch(readings, capture.logits)
        reasons = self.calibration.reasons
        scores = {name: one.score for name, one in readings.items()} | self.calibration.fused.fusion.scores(read)
        tables = {**self.calibration.tables, **self.calibration.judged}
        columns = {
            name: (values.tolist(), p_value(values.to(tables[name].dtype), tables[name]).tolist())
            for name, values in scores.items()
        }
        if observe is not None:
            observe(FUSED, time.perf_counter() - start)
        finite = torch.stack([torch.isfinite(values) for values in scores.values()]).all(dim=0).tolist()

        flags = self.calibration.levels.flags
        answers: list[Answer | ScreenError] = []
        for i, prediction in enumerate(predictions):
            if isinstance(prediction, ScreenError):
                answers.append(prediction)
                continue
            if not finite[i]:
                answers.append(ScreenError("a detector gave NaN or infinity for this image"))
                continue
            words = {
                name: DetectorVerdict(
                    name,
                    values[i],
                    ps[i],
                    flags(ps[i]),
                    explanations[name].get(i) if name != FUSED else None,
                )
                for name, (values, ps) in columns.items()
                if name not in reasons
            }
            why = {MANIPULATED: words[FUSED].p_value} | {name: columns[name][1][i] for name in reasons}
            verdict = self.calibration.levels.verdict(words[FUSED].p_value)
            screening = Screening(
                words[FUSED],
                tuple(words[name] for name in self.detectors),
                tuple(Reason(name, p, flags(p)) for name, p in why.items()),
            )
            answers.append(Answer(prediction, verdict, screening, bundle_id=self.bundle_id))
        if len(answers) > 1:
            for i in self._undecided(read, scores, readings).nonzero().flatten().tolist():
                (answers[i],) = self(images[i : i + 1], wanted[i], observe)
        return answers

    def _undecided(self, read: Readings, scores: Mapping[str, Tensor], readings: Mapping[str, Reading]) -> Tensor:
        """The images whose class, verdict or flags the last bits of their numbers decide, [B] bool."""
        calibration = self.calibration
        ends = {}
        for name, clean in calibration.tables.items():
            low, high = around(scores[name], clean)
            slack = 0.0 if (own := readings[name].slack) is None else own
            ends[name] = (low - slack, high + slack, clean)
        for name, (low, high) in calibration.fused.fusion.ends(read).items():
            ends[name] = (low, high, calibration.judged[name])
        alphas = [alpha for _, alpha in calibration.levels.items()]
        undecided = [is_close(read.logits), *(one.tied for one in readings.values() if one.tied is not None)]
        for low, high, clean in ends.values():
            least, most = (p_value(end.to(clean.dtype), clean) for end in (high, low))
            undecided.append(may_change(least, most, alphas))
        return torch.stack(undecided).any(dim=0)

    @torch.no_grad()
    def classify(self, images: Tensor) -> list[Answer | ScreenError]:
        """The classifier's answers alone (verdict UNSCREENED), for images [B, C, H, W] in [0, 1]; otherwise as a call.

        Raises:
            ConfigError: there are not as many class names as outputs.
        """
        return [
            found
            if isinstance(found, ScreenError)
            else Answer(found, Verdict.UNSCREENED, reason=UNSCREENED, bundle_id=self.bundle_id)
            for found in self._predictions(self.tap.classify(images))
        ]

    def _predictions(self, logits: Tensor) -> list[Prediction | ScreenError]:
        if logits.shape[1] != len(self.class_names):
            raise ConfigError(f"the classifier has {logits.shape[1]} outputs for {len(self.class_names)} class names")
        finite = torch.isfinite(logits).all(dim=1).tolist()
        probabilities, predicted = logits.softmax(dim=1).tolist(), logits.argmax(dim=1).tolist()
        return [
            Prediction(index, self.class_names[index], tuple(shares), tuple(row))
            if ok
            else ScreenError("the classifier gave NaN or infinity for this image")
            for ok, index, shares, row in zip(finite, predicted, probabilities, logits.tolist(), strict=True)
        ]

    @property
    def device(self) -> torch.device:
        """Where it computes: that of the fused score's table."""
        return self.calibration.fused.table.device

    def to(self, device: str | torch.device) -> Self:
        """Move the classifier, the detectors and the tables; return self. Not while others call it.

        Raises:
            ConfigError: there is no such device.
        """
        try:
            self.calibration = self.calibration.to(device)
            for module in (self.tap.module, *self.detectors.values()):
                module.to(device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA raises an AssertionError
            raise ConfigError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from None
        return self

    def close(self) -> None:
        """Remove the hooks from the classifier."""
        self.tap.close()
