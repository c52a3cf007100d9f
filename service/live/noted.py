"""Noted: what was answered last, image by image, for the live page; in memory alone, and never much of it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from askance.answers import Answer, Verdict
from askance.explained import in_words
from askance.service.answered import Answered

LATEST, FLAGGED = 200, 20
"""How many images are noted: any, and flagged ones with what was seen of them."""
PACE_SECONDS = 0.2
"""Between two that are noted, and two that are explained: looking must not cost more where there is more traffic."""
MAP_POINT = ("introspection", "map_point")
"""Whose explanation says where an image lies on the activation map, and under which name."""


@dataclass(frozen=True)
class Noted:
    """One image that was answered.

    Attributes:
        at: when, in Unix time.
        client: who sent it, by name.
        request_id: of its request.
        label: the predicted class.
        probability: of it.
        verdict: what was said of it, whether or not the client was told.
        p_value: the fused one.
        place: on the activation map; None without one.
        words: what each detector saw, a line each; of flagged images alone.
    """

    at: float
    client: str
    request_id: str
    label: str
    probability: float
    verdict: str
    p_value: float
    place: tuple[float, float] | None
    words: tuple[str, ...] = ()


class Notes:
    """The images answered last; noted on one thread, read on any.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._latest: deque[Noted] = deque(maxlen=LATEST)
        self._flagged: deque[Noted] = deque(maxlen=FLAGGED)
        self._next = {True: 0.0, False: 0.0}

    def note(self, answered: Answered) -> None:
        """Take note of an image, unless another of its kind, flagged or not, was noted only just now."""
        answer, call = answered.answer, answered.call
        assert answer.prediction is not None
        assert answer.screening is not None
        assert answer.verdict is not None
        flagged, now = answer.verdict is not Verdict.CLEAN, self._clock()
        if now < self._next[flagged]:
            return
        self._next[flagged] = now + PACE_SECONDS
        explained = answer.explained()
        words = tuple(in_words(explained, answered.class_names))  # of clean ones, too: flagged ones take no longer
        noted = Noted(
            time.time(),
            call.identity.name,
            call.request_id,
            answer.prediction.label,
            answer.prediction.probability,
            answer.verdict.value,
            answer.screening.fused.p_value,
            _place(explained),
            words if flagged else (),
        )
        with self._lock:
            self._latest.append(noted)
            if flagged:
                self._flagged.append(noted)

    def shown(self) -> tuple[list[Noted], list[Noted]]:
        """The latest, and the latest flagged ones, the oldest first."""
        with self._lock:
            return list(self._latest), list(self._flagged)


def together(several: Sequence[tuple[list[Noted], list[Noted]]]) -> tuple[list[Noted], list[Noted]]:
    """What several processes have noted, as one server's."""
    latest, flagged = ([noted for one in several for noted in one[kind]] for kind in (0, 1))
    return sorted(latest, key=_when)[-LATEST:], sorted(flagged, key=_when)[-FLAGGED:]


def _when(noted: Noted) -> float:
    return noted.at


def _place(answer: Answer) -> tuple[float, float] | None:
    assert answer.screening is not None
    name, point = MAP_POINT
    for word in answer.screening.detectors:
        if word.name == name and word.explanation is not None and len(word.explanation[point]) == 2:
            first, second = word.explanation[point]
            return float(first), float(second)
    return None
