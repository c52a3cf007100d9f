"""Second looks: images that a single pass finds suspicious are read again with their views, as many as a budget allows.

Most images get by with one pass of the classifier. What that saves is in others' hands: whoever sends suspicious images
makes them cost a single pass and one with views, up to the budget; and time tells whose image was looked at again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

from askance.answers import Answer
from askance.errors import BundleError, ScreenError
from askance.images import Batch
from askance.judgement import Calibration
from askance.screening.reading import Observe
from askance.screening.screen import Screen

STAGE = "second_look"
BURST = 32.0  # second looks that a server at rest may take at once, beside its share


class Budget:
    """Second looks for a share of all images, saved up to a burst. Safe to use from several threads.

    Args:
        share: of the images, in (0, 1].
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._saved, self._lock = BURST, threading.Lock()

    def grant(self, wanted: int, of: int) -> int:
        """How many of `wanted` second looks may be taken, now that there were `of` images more."""
        with self._lock:
            self._saved += self.share * of
            granted = min(wanted, int(self._saved))
            self._saved = min(self._saved - granted, BURST)
        return granted


class SecondLookScreen(Screen):
    """A single-pass Screen, and one with views for the images whose fused score reaches the calibration's threshold.

    An image that is looked at again has the p-values of its second look, by a table made for it
    (`judgement.SecondLook`); all others, those that the budget refuses among them, the single pass's. Either way a
    clean image is flagged no oftener than the levels promise. Of the detectors those of the single pass have their
    word; those that need views speak in the fused score alone. Safe to call from several threads.

    Args:
        first: of the single pass.
        whole: with views; closed with this.
        share: of the images, in (0, 1], that may be looked at again.

    Raises:
        BundleError: the calibration has no second look.
    """

    def __init__(self, first: Screen, whole: Screen, share: float) -> None:
        look = whole.calibration.second_look
        if look is None:
            raise BundleError(
                "it was calibrated without second looks, which take a detector that needs views: calibrate again, or "
                "leave inference.second_looks out"
            )
        calibration = first.calibration.looking_again_from(look.threshold)
        super().__init__(
            first.reader, first.preprocessing, first.class_names, first.detectors, calibration, first.bundle_id
        )
        # Screens of their own, which judge images again alone, too, and take no second look at that
        self._first, self._second = _judging(first, calibration), _judging(whole, whole.calibration.at_a_second_look())
        self._threshold, self._budget = look.threshold, Budget(share)
        self.notify: Callable[[int, int], None] = lambda *_: None
        """Told of each batch how many second looks were taken, and how many the budget refused."""

    def __call__(
        self, images: Batch, explain: Sequence[bool] | bool = False, observe: Observe | None = None
    ) -> list[Answer | ScreenError]:
        """As any Screen's; all second looks of a batch are one stage more."""
        answers = self._first(images, explain, observe)
        suspicious = [i for i, one in enumerate(answers) if isinstance(one, Answer) and self._is_suspicious(one)]
        # those that came first, whatever their scores: a promised rate bears no other choice
        chosen = suspicious[: self._budget.grant(len(suspicious), len(answers))]
        if suspicious:
            self.notify(len(chosen), len(suspicious) - len(chosen))
        if chosen:
            start = time.perf_counter()
            wanted = explain if isinstance(explain, bool) else [explain[i] for i in chosen]
            for i, again in zip(chosen, self._second(images[chosen], wanted), strict=True):
                answers[i] = self._as_first(again)
            if observe is not None:
                observe(STAGE, time.perf_counter() - start)
        return answers

    def _is_suspicious(self, answer: Answer) -> bool:
        return answer.score is not None and answer.score >= self._threshold

    def _as_first(self, again: Answer | ScreenError) -> Answer | ScreenError:
        """With the words of those detectors alone that the single pass has, too."""
        if isinstance(again, ScreenError) or again.screening is None:
            return again
        words = tuple(word for word in again.screening.detectors if word.name in self.detectors)
        return replace(again, screening=replace(again.screening, detectors=words))

    @property
    def stages(self) -> tuple[str, ...]:
        """The single pass's, and the second look."""
        return (*super().stages, STAGE)

    def to(self, device: str) -> Self:
        """Compute both elsewhere."""
        self._second.to(device)
        return super().to(device)

    def close(self) -> None:
        """Close both."""
        self._second.close()
        super().close()


def _judging(screen: Screen, calibration: Calibration) -> Screen:
    """The same Screen by other tables."""
    return Screen(
        screen.reader, screen.preprocessing, screen.class_names, screen.detectors, calibration, screen.bundle_id
    )
