"""What the tests of the live page and of review share: an image that was answered, without a server."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from askance.answers import Answer, DetectorVerdict, Prediction, Screening, Verdict
from askance.service.answered import Answered
from askance.service.call import Call, Identity, Role
from askance.service.review.store import Kept


def answered(verdict: Verdict, label: str = "ant", client: str = "camera", p: float = 0.5) -> Answered:
    """An image of pixels, by a detector that has seen it on the activation map."""

    def explain() -> dict[str, dict[str, Any]]:
        return {"introspection": {"map_point": [0.5, -1.0], "estimated_error": 0.1}}

    word = DetectorVerdict("introspection", 1.0, p, ())
    screening = Screening(DetectorVerdict("fused", 1.0, p, ()), (word,), explain=explain)
    call = Call("Screen", "r", identity=Identity(client, frozenset({Role.PREDICT})))
    answer = Answer(Prediction(0, label, (0.9, 0.1)), verdict, screening)
    return Answered(call, answer, None, np.zeros((1, 2, 2), np.float32), ("ant", "bee"))


def kept(name: str, at: float | None = None, size: int = 10, **changes: Any) -> Kept:
    """A request of a camera's, as it is kept."""
    values: dict[str, Any] = {
        "id": name,
        "at": time.time() if at is None else at,
        "client": "camera",
        "address": "ipv4:10.0.0.1",
        "request_id": "r",
        "bundle": "b" * 64,
        "label": "ant",
        "probability": 0.9,
        "verdict": "SUSPECT",
        "p_value": 0.03,
        "words": ("one", "two"),
        "why": "flagged",
        "media": "image/png",
        "bytes": size,
    }
    return Kept(**values | changes)
