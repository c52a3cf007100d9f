"""Answers: what is said of one image, in process and over the wire alike. Light: nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from html import escape
from typing import Any

from askance.notebook import headline, table


class Verdict(StrEnum):
    """What is said of an image.

    Attributes:
        CLEAN: like the images that the detectors were calibrated on.
        SUSPECT: the fused p-value is at most the target of the level "suspect".
        ADVERSARIAL: it is at most the target of the level "adversarial".
        UNSCREENED: the detectors failed on it or had no time for it; the prediction stands alone.
        BLOCKED: it was judged adversarial by a server that gives no prediction for such images (policy block).
    """

    CLEAN = "CLEAN"
    SUSPECT = "SUSPECT"
    ADVERSARIAL = "ADVERSARIAL"
    UNSCREENED = "UNSCREENED"
    BLOCKED = "BLOCKED"


FUSED = "fused"
"""The name of all detectors together."""
JUDGED = (Verdict.CLEAN, Verdict.SUSPECT, Verdict.ADVERSARIAL)
"""The verdicts that a p-value gives."""

# The kinds of suspicion, each with a p-value of its own.
MANIPULATED = "manipulated"
"""Layers, copies and codes contradict the answer: the fused p-value, by which the verdict goes."""
UNFAMILIAR = "unfamiliar"
"""Not like the images that were calibrated on: drift, another camera, something strange. A flag, no verdict."""
DOUBTFUL = "doubtful"
"""The classifier itself is unsure of its answer. A flag, no verdict."""

SCORER_OF = {MANIPULATED: FUSED, UNFAMILIAR: UNFAMILIAR, DOUBTFUL: DOUBTFUL}
"""By which column of an evaluation, or score of a screen, each reason goes."""

_MEANINGS = {
    MANIPULATED: "the detectors contradict the answer",
    UNFAMILIAR: "not like the images calibrated on",
    DOUBTFUL: "the classifier is unsure",
}

# Why an answer has no screening.
UNSCREENED = "the detectors failed on this image or had no time for it"
BLOCKED = "this image was judged adversarial: no prediction is given for it"
WITHHELD = "the server keeps its verdicts (policy monitor)"
UNDISCLOSED = "scores are for clients with the role 'scores'"


@dataclass(frozen=True)
class Prediction:
    """The classifier's answer for one image.

    Attributes:
        index: the predicted class.
        label: its name.
        probabilities: softmax of the logits, K numbers.
        logits: what the classifier gave out, K numbers; None where we may not see it, as over askance's own protocol.
            Two predictions are the same without them: they are what the probabilities were made of.
    """

    index: int
    label: str
    probabilities: tuple[float, ...]
    logits: tuple[float, ...] | None = field(default=None, repr=False, compare=False)

    @property
    def probability(self) -> float:
        """The predicted class's probability."""
        return self.probabilities[self.index]

    def rounded(self, digits: int) -> Prediction:
        """The same with probabilities of so many digits after the point, and without logits."""
        return Prediction(self.index, self.label, tuple([round(one, digits) for one in self.probabilities]))


@dataclass(frozen=True)
class DetectorVerdict:
    """One detector's word on one image.

    Attributes:
        name: the detector's kind, or "fused".
        score: higher = more suspicious; comparable within one detector of one bundle only.
        p_value: conformal, in (0, 1]: the share of clean images at least as suspicious.
        flags: the levels met, of "suspect" and "adversarial".
        explanation: a small dict for people, if asked for.
    """

    name: str
    score: float
    p_value: float
    flags: tuple[str, ...]
    explanation: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Reason:
    """One kind of suspicion of one image.

    Attributes:
        name: "manipulated", "unfamiliar" or "doubtful".
        p_value: conformal, in (0, 1]: the share of clean images of which it is at least as true.
        flags: the levels met, of "suspect" and "adversarial".
    """

    name: str
    p_value: float
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Screening:
    """What the detectors say of one image.

    Attributes:
        fused: the fused score and p-value, by which the verdict goes.
        detectors: each detector's word, in the bundle's order.
        reasons: the kinds of suspicion: manipulated, unfamiliar, doubtful; empty from a server that knows none.
        explain: what each detector saw, by name, for whoever wants to know once the answer is given; None where it
            came over the wire.
    """

    fused: DetectorVerdict
    detectors: tuple[DetectorVerdict, ...]
    reasons: tuple[Reason, ...] = ()
    explain: Callable[[], Mapping[str, Mapping[str, Any]]] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Answer:
    """The answer for one image: its prediction and, where there is one and we may see it, its screening.

    What is not there, or not disclosed to us, is None, never a zero that could be taken for a p-value.

    Attributes:
        prediction: the classifier's; None where the verdict is BLOCKED.
        verdict: None where the server keeps it (policy monitor).
        screening: None where there is none, or where it is not disclosed.
        reason: why there is no screening; None where there is one.
        bundle_id: SHA-256 over the content of the bundle that answered; empty if it came from none.
    """

    prediction: Prediction | None
    verdict: Verdict | None
    screening: Screening | None = None
    reason: str | None = None
    bundle_id: str = ""

    @property
    def p_value(self) -> float | None:
        """The fused p-value, in (0, 1]; None without a screening."""
        return None if self.screening is None else self.screening.fused.p_value

    @property
    def score(self) -> float | None:
        """The fused score; None without a screening."""
        return None if self.screening is None else self.screening.fused.score

    @property
    def label(self) -> str | None:
        """The predicted class's name; None without a prediction."""
        return None if self.prediction is None else self.prediction.label

    def explained(self) -> Answer:
        """The same with each detector's explanation, as far as there is one."""
        if self.screening is None or self.screening.explain is None:
            return self
        said = self.screening.explain()
        words = tuple(replace(word, explanation=said.get(word.name)) for word in self.screening.detectors)
        return replace(self, screening=replace(self.screening, detectors=words))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: `prediction`, `probabilities`, `verdict`, `p_value`, `score`, `reasons`, `detectors`, `reason`,
        `bundle_id`; what is not there, or not disclosed, is absent.
        """
        prediction, screening = self.prediction, self.screening
        content: dict[str, Any] = {"bundle_id": self.bundle_id}
        if prediction is not None:
            content["prediction"] = {
                "index": prediction.index,
                "label": prediction.label,
                "probability": prediction.probability,
            }
            content["probabilities"] = list(prediction.probabilities)
        if self.verdict is not None:
            content["verdict"] = self.verdict.value
        if screening is not None:
            content |= {"p_value": screening.fused.p_value, "score": screening.fused.score}
            content["reasons"] = [_listed(reason) for reason in screening.reasons]
            content["detectors"] = [_listed(word) for word in screening.detectors]
        if self.reason is not None:
            content["reason"] = self.reason
        return content

    def _repr_html_(self) -> str:
        said = "no prediction"
        if self.prediction is not None:
            said = f"{self.prediction.label} ({self.prediction.probability:.1%})"
        line = headline(said, "" if self.verdict is None else self.verdict.value, self.reason or "")
        if self.screening is None:
            return f"<div>{line}</div>"
        words = (*self.screening.detectors, self.screening.fused)
        rows = [(word.name, f"{word.score:.4g}", f"{word.p_value:.4g}", ", ".join(word.flags)) for word in words]
        flagged = said_of((reason.name, reason.p_value) for reason in self.screening.reasons if reason.flags)
        why = f"<p>{escape(flagged)}</p>" if flagged else ""
        return f"<div>{line}{why}{table(('detector', 'score', 'p-value', 'flags'), rows)}</div>"


def said_of(flagged: Iterable[tuple[str, float]]) -> str:
    """The reasons that are flagged, each a name and a p-value, in words of one line; empty without any."""
    return "; ".join(f"{name}: {_MEANINGS.get(name, name)} (p = {p:.2g})" for name, p in flagged)


def _listed(word: DetectorVerdict | Reason) -> dict[str, Any]:
    content = asdict(word) | {"flags": list(word.flags)}
    return {name: value for name, value in content.items() if value is not None}
