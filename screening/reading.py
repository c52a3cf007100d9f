"""Readings: what the detectors make of one batch of images, and what is judged of it.

Readers differ in what computes: a bundle's graph (`screening.graph`), or the classifier under hooks, in torch
(`detectors.reader`). What they read is in numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypeVar

from askance.images import Batch
from askance.judgement import Readings

Observe = Callable[[str, float], None]  # (stage, seconds)
T = TypeVar("T", default=Any)
U = TypeVar("U")


class Rows(Mapping[str, T]):
    """Named rows of one tensor or array [F, B]: what was computed together is not taken apart to be put together again.

    Attributes:
        together: the rows.

    Raises:
        ValueError: there are not as many names as rows.
    """

    def __init__(self, names: Sequence[str], together: Any) -> None:
        if len(names) != len(together):
            raise ValueError(f"{len(names)} names for {len(together)} rows")
        self.together: T = together
        self._places = {name: place for place, name in enumerate(names)}

    def __getitem__(self, name: str) -> T:
        rows: Any = self.together
        row: T = rows[self._places[name]]
        return row

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@dataclass(frozen=True)
class Reading(Generic[T]):
    """What a detector read from one batch, as tensors where torch computes and as arrays once it is to be judged.

    Attributes:
        score: [B], higher = more suspicious.
        components: the named readings behind the score, {name: [B]}, which fusion weighs.
        two_sided: the components that can be untypical either way; the others point like the score.
        evidence: what `explain_one` puts in words, {name: [B, ...]}.
        tied: whether a tie, but for noise (`detectors.ranks.TIE`), decided something: the readings would jump; [B]
            bool, None where nothing can be tied.
        slack: how far the score may be off because it rises in steps, [B], >= 0; None where it does not.
        step: what the components were rounded to: the last bits move them by as much, or not at all.
    """

    score: T
    components: Mapping[str, T]
    two_sided: frozenset[str] = frozenset()
    evidence: Mapping[str, T] = field(default_factory=dict)
    tied: T | None = None
    slack: T | None = None
    step: float = 0.0

    def each(self, convert: Callable[[T], U]) -> Reading[U]:
        """The same, all of it converted."""
        return Reading(
            convert(self.score),
            {name: convert(values) for name, values in self.components.items()},
            self.two_sided,
            {name: convert(values) for name, values in self.evidence.items()},
            None if self.tied is None else convert(self.tied),
            None if self.slack is None else convert(self.slack),
            self.step,
        )


Numbers = Reading[NDArray[Any]]
"""A Reading that can be judged."""


class Explainer(Protocol):
    """What a Screen has to know of a detector whose evidence has been read."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers it reads."""

    @property
    def view_layers(self) -> tuple[str, ...]:
        """The layers it reads of views of the input; without any it asks for no views."""

    def explain_one(self, evidence: Mapping[str, Any]) -> dict[str, Any]:
        """Put one input's evidence (without the batch dimension) in a small JSON-ready dict for people."""


class Read(NamedTuple):
    """What was read of B images: the logits [B, K], and every detector's Reading, by name."""

    logits: NDArray[Any]
    readings: dict[str, Numbers]


class Reader(Protocol):
    """Reads images. Safe to call from several threads."""

    engine: str
    """What computes."""
    stages: tuple[str, ...]
    """What `observe` is told of."""

    def __call__(self, images: Batch, observe: Observe | None = None) -> Read:
        """Read a batch; `observe` gets the seconds of each stage."""

    def classify(self, images: Batch) -> NDArray[Any]:
        """The logits alone, [B, K]."""

    def to(self, device: str) -> None:
        """Compute elsewhere. Not while others call it.

        Raises:
            ConfigError: there is no such device.
        """

    def close(self) -> None:
        """Let go of what it holds."""


ReaderT_co = TypeVar("ReaderT_co", bound=Reader, default=Reader, covariant=True)


def in_numbers(readings: Mapping[str, Numbers], logits: NDArray[Any]) -> Readings:
    """What is judged of every detector's Reading of a batch, {detector: Reading}, and of its logits [B, K]."""
    return Readings(
        {name: one.score for name, one in readings.items()},
        {
            f"{name}/{part}": values.astype(np.float32, copy=False)
            for name, one in readings.items()
            for part, values in one.components.items()
        },
        frozenset(f"{name}/{part}" for name, one in readings.items() for part in one.two_sided),
        logits,
    )


def slack_of(readings: Mapping[str, Numbers]) -> dict[str, NDArray[Any]]:
    """How far the scores of detectors may be off because they rise in steps, {detector: [B]}."""
    return {name: one.slack for name, one in readings.items() if one.slack is not None}
