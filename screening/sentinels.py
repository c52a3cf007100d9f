"""Sentinels: images kept in a bundle with the answers that they got, which tell whether it still works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from askance.answers import FUSED, Answer
from askance.errors import AskanceError, BundleError, ScreenError, one_line
from askance.judgement.conformal import reach
from askance.screening.arrays import Stored
from askance.screening.images import Pixels
from askance.screening.manifest import Expected
from askance.screening.screen import Screen

MOST_IMAGES = 16  # of each kind, clean and attacked: one batch
TOLERANCE = 0.05  # of the same, the most that a sentinel's score may differ from the one recorded
MOST_MOVED = 1 / 8  # of the sentinels, that may be further off: scores have steps, and rounding may cross one
LEAST = 1e-6  # where a score has no spread
_OTHERS = "its sentinels are not the images that the manifest tells of: calibrate again"


@dataclass(frozen=True)
class Sentinels:
    """Images and the answers to be expected of a bundle's Screen (`detectors.choosing` picks them).

    Attributes:
        images: [N, C, H, W] in [0, 1]; N may be 0.
        expected: N answers.
        fused: which of the fused scores the Screen goes by.
    """

    images: Pixels
    expected: tuple[Expected, ...]
    fused: str = FUSED

    @classmethod
    def none(cls, shape: tuple[int, int, int]) -> Self:
        """No images at all: of a Screen it is only tried whether it can answer."""
        return cls(np.empty((0, *shape), dtype=np.float32), ())

    @classmethod
    def read(
        cls, tensors: Mapping[str, Stored], expected: tuple[Expected, ...], shape: tuple[int, int, int], fused: str
    ) -> Self:
        """From a bundle's file.

        Raises:
            BundleError: the file holds something else.
        """
        if set(tensors) != {"clean", "attacked"}:
            raise BundleError(_OTHERS)
        clean, attacked = tensors["clean"].values, tensors["attacked"].values
        if (
            clean is None
            or attacked is None
            or clean.dtype != np.uint8
            or attacked.dtype != np.float32
            or clean.shape[1:] != shape
            or attacked.shape[1:] != shape
            or len(clean) + len(attacked) != len(expected)
            or max(len(clean), len(attacked)) > MOST_IMAGES
        ):
            raise BundleError(_OTHERS)
        return cls(np.concatenate([clean / np.float32(255), attacked]), expected, fused)

    def prove(self, screen: Screen) -> None:
        """Screen them in one batch, and judge the answers; without sentinels, a black image, and its answer counts not.

        Raises:
            BundleError: the classifier or a detector fails, or an answer is not the one expected; the message begins
                with what the bundle does.
        """
        images = self.images if self.expected else np.zeros((1, *screen.preprocessing.shape), dtype=np.float32)
        try:
            answers = screen(images)
        except AskanceError as error:
            raise BundleError(f"cannot screen an image: {error}") from None
        except Exception as error:
            raise BundleError(f"cannot screen an image: {one_line(error)}") from error
        if not self.expected:
            return
        spreads, pairs = spreads_of(screen, self.fused), list(zip(answers, self.expected, strict=True))
        misjudged = [fault for one, expected in pairs if (fault := _misjudged(one, expected, self.fused)) is not None]
        moved = [fault for one, expected in pairs if (fault := _moved(one, expected, self.fused, spreads)) is not None]
        if misjudged or len(moved) > MOST_MOVED * len(pairs):
            wrong = [*misjudged, *moved]
            raise BundleError(
                f"answers {len(wrong)} of its {len(pairs)} sentinel images otherwise than when it was calibrated "
                f"(the first: {wrong[0]}): its weights, or what computes with them, have changed; calibrate again on "
                "this machine"
            )


def _misjudged(answer: Answer | ScreenError, expected: Expected, fused: str) -> str | None:
    """How class or verdict differ; None where they do not."""
    if isinstance(answer, ScreenError):
        return str(answer)
    assert answer.prediction is not None
    if answer.prediction.label != expected.label:
        return f"{answer.prediction.label!r} in place of {expected.label!r}"
    if answer.verdict != expected.verdicts.get(fused):
        return f"{answer.verdict} in place of {expected.verdicts.get(fused, 'none')}"
    return None


def _moved(answer: Answer | ScreenError, expected: Expected, fused: str, spreads: Mapping[str, float]) -> str | None:
    """How a score differs, of an answer that is otherwise the one expected; None where none does."""
    if isinstance(answer, ScreenError) or _misjudged(answer, expected, fused) is not None:
        return None
    for name, score in scores_of(answer, fused).items():
        was = expected.scores.get(name, float("nan"))
        if not abs(score - was) <= TOLERANCE * spreads[name] + LEAST:
            return f"{name} {score:.4g} in place of {was:.4g}"
    return None


def scores_of(answer: Answer, fused: str) -> dict[str, float]:
    """Every score of an answer, the fused one under the name `fused`."""
    assert answer.screening is not None
    scores = {word.name: word.score for word in answer.screening.detectors}
    return scores | {fused: answer.screening.fused.score}


def spreads_of(screen: Screen, fused: str) -> dict[str, float]:
    """How far apart clean scores are: from the first to the last hundredth of each table."""
    tables = {**screen.calibration.tables, fused: screen.calibration.fused.table}
    return {name: float(reach(values, len(values) // 100)) for name, values in tables.items()}
