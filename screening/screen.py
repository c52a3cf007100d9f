"""Screen: a classifier, its detectors and their calibration in one call, from a batch of images to verdicts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Generic, Self

import numpy as np
from numpy.typing import NDArray

from askance.answers import (
    FUSED,
    MANIPULATED,
    UNSCREENED,
    Answer,
    DetectorVerdict,
    Prediction,
    Reason,
    Screening,
    Verdict,
)
from askance.errors import ConfigError, ScreenError
from askance.images import Batch
from askance.judgement import Bounds, Calibration, Readings
from askance.judgement.arrays import Bools, Floats
from askance.screening.preprocessing import Preprocessing
from askance.screening.reading import Explainer, Numbers, Observe, ReaderT_co, in_numbers, slack_of


class Screen(Generic[ReaderT_co]):
    """From a batch of images to predictions and verdicts. Safe to call from several threads.

    Args:
        reader: of images like those that the tables were made of.
        preprocessing: the input's shape and normalisation.
        class_names: K names.
        detectors: by name; they explain what was read.
        calibration: their conformal tables.
        bundle_id: of the bundle that all this comes from; each answer names it.
    """

    def __init__(
        self,
        reader: ReaderT_co,
        preprocessing: Preprocessing,
        class_names: Sequence[str],
        detectors: Mapping[str, Explainer],
        calibration: Calibration,
        bundle_id: str = "",
    ) -> None:
        self.bundle_id = bundle_id
        self.preprocessing = preprocessing
        self.class_names = tuple(class_names)
        self.detectors = dict(detectors)
        self.calibration = calibration
        self.reader = reader

    def __call__(
        self, images: Batch, explain: Sequence[bool] | bool = False, observe: Observe | None = None
    ) -> list[Answer | ScreenError]:
        """Screen a batch with one classifier call.

        Args:
            images: [B, C, H, W], float32 in [0, 1].
            explain: whether to explain, for all or one each.
            observe: called with (stage, seconds) for those of the reader, and "fused" (with the p-values).

        Returns:
            One Answer per input, or the ScreenError that befell it alone.

        Raises:
            ConfigError: there are not as many class names as outputs.
        """
        wanted = [explain] * len(images) if isinstance(explain, bool) else list(explain)
        answers, undecided = self._answered(images, wanted, observe, closely=len(images) > 1)
        for i in undecided:
            (answers[i],) = self(images[i : i + 1], wanted[i], observe)
        return answers

    def at_once(self, images: Batch) -> list[Answer | ScreenError]:
        """As a call, but none is judged again alone: for whoever does not go by the last bits."""
        return self._answered(images, [False] * len(images), None, closely=False)[0]

    def _answered(
        self, images: Batch, wanted: Sequence[bool], observe: Observe | None, *, closely: bool
    ) -> tuple[list[Answer | ScreenError], list[int]]:
        """The answers, and which of them the last bits decide, if that is asked."""
        logits, readings = self.reader(images, observe)
        predictions = self._predictions(logits)
        explanations = [self._explained(readings, i) if asked else {} for i, asked in enumerate(wanted)]
        start = time.perf_counter()
        numbers = in_numbers(readings, logits)
        undecided: list[int] = []
        if closely:
            bounds = self.calibration.bounds(numbers, slack_of(readings))
            judged = self.calibration.p_values({name: one.value for name, one in bounds.items()})
            undecided = self.undecided(numbers, readings, bounds).nonzero()[0].tolist()
        else:
            judged = self.calibration.judge(numbers)
        columns = {name: (scores.tolist(), p.tolist()) for name, (scores, p) in judged.items()}
        finite = np.logical_and.reduce([np.isfinite(scores) for scores, _ in judged.values()]).tolist()
        if observe is not None:
            observe(FUSED, time.perf_counter() - start)

        flags, reasons = self.calibration.levels.flags, self.calibration.reasons
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
                    explanations[i].get(name),
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
                partial(self._explained, readings, i),
            )
            answers.append(Answer(prediction, verdict, screening, bundle_id=self.bundle_id))
        return answers, undecided

    def _explained(self, readings: Mapping[str, Numbers], position: int) -> dict[str, dict[str, Any]]:
        """What each detector saw of one image."""
        return {
            name: detector.explain_one({kind: values[position] for kind, values in readings[name].evidence.items()})
            for name, detector in self.detectors.items()
        }

    def undecided(
        self, numbers: Readings, readings: Mapping[str, Numbers], bounds: Mapping[str, Bounds[Floats]]
    ) -> Bools:
        """The images whose class, verdict or flags the last bits of their numbers decide, [B] bool."""
        tied = [one.tied for one in readings.values() if one.tied is not None]
        undecided: Bools = np.logical_or.reduce([self.calibration.undecided(numbers, bounds), *tied])
        return undecided

    def classify(self, images: Batch) -> list[Answer | ScreenError]:
        """The classifier's answers alone (verdict UNSCREENED), for images [B, C, H, W] in [0, 1]; otherwise as a call.

        Raises:
            ConfigError: there are not as many class names as outputs.
        """
        return [
            found
            if isinstance(found, ScreenError)
            else Answer(found, Verdict.UNSCREENED, reason=UNSCREENED, bundle_id=self.bundle_id)
            for found in self._predictions(self.reader.classify(images))
        ]

    def _predictions(self, logits: NDArray[Any]) -> list[Prediction | ScreenError]:
        if logits.shape[1] != len(self.class_names):
            raise ConfigError(f"the classifier has {logits.shape[1]} outputs for {len(self.class_names)} class names")
        finite = np.isfinite(logits).all(axis=1).tolist()
        probabilities, predicted = _softmax(logits).tolist(), logits.argmax(axis=1).tolist()
        return [
            Prediction(index, self.class_names[index], tuple(shares), tuple(row))
            if ok
            else ScreenError("the classifier gave NaN or infinity for this image")
            for ok, index, shares, row in zip(finite, predicted, probabilities, logits.tolist(), strict=True)
        ]

    @property
    def stages(self) -> tuple[str, ...]:
        """What `observe` is told of, beside "fused"."""
        return self.reader.stages

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that the detectors read."""
        return tuple(
            dict.fromkeys(layer for one in self.detectors.values() for layer in (*one.layers, *one.view_layers))
        )

    def to(self, device: str) -> Self:
        """Compute elsewhere; return self. Not while others call it.

        Raises:
            ConfigError: there is no such device.
        """
        self.reader.to(device)
        return self

    def close(self) -> None:
        """Let go of what the reader holds: hooks on the classifier, say."""
        self.reader.close()


def _softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """[B, K] -> [B, K]; what NaN and infinity make of it is nobody's concern."""
    with np.errstate(invalid="ignore"):
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        softmax: NDArray[Any] = shares / shares.sum(axis=1, keepdims=True)
    return softmax
