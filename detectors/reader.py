"""Readers: from a batch of images to the classifier's logits and every detector's reading of what it does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import TypeVar

from askance.detectors.detector import Detector, Reading, tap_for
from askance.detectors.preprocessing import Preprocessing
from askance.detectors.tap import Capture
from askance.errors import ConfigError
from askance.judgement import Readings

Observe = Callable[[str, float], None]  # (stage, seconds)


def read_all(detectors: Mapping[str, Detector], capture: Capture, observe: Observe | None = None) -> dict[str, Reading]:
    """Every detector's Reading of a Capture, {name: Reading}; `observe` gets each one's seconds."""
    readings = {}
    for name, detector in detectors.items():
        start = time.perf_counter()
        readings[name] = detector.read(capture)
        if observe is not None:
            observe(name, time.perf_counter() - start)
    return readings


def in_numbers(readings: Mapping[str, Reading], logits: Tensor) -> Readings:
    """What is judged of every detector's Reading of a Capture, {detector: Reading}, and of its logits [B, K]."""
    parts = {f"{name}/{part}": values for name, one in readings.items() for part, values in one.components.items()}
    # one copy from the device, not one for each
    components = dict(zip(parts, array(torch.stack([part.float() for part in parts.values()])), strict=True))
    return Readings(
        {name: array(one.score) for name, one in readings.items()},
        components,
        frozenset(f"{name}/{part}" for name, one in readings.items() for part in one.two_sided),
        array(logits),
    )


def slack_of(readings: Mapping[str, Reading]) -> dict[str, NDArray[Any]]:
    """How far the scores of detectors may be off because they rise in steps, {detector: [B]}."""
    return {name: array(one.slack) for name, one in readings.items() if one.slack is not None}


def array(values: Tensor) -> NDArray[Any]:
    """Numbers as numpy has them, in float32 where it has not their precision."""
    values = values.detach().cpu()
    array: NDArray[Any] = (values.float() if values.dtype in (torch.float16, torch.bfloat16) else values).numpy()
    return array


@torch.no_grad()
def read(detectors: Mapping[str, Detector], captures: Capture | Iterable[Capture]) -> Readings:
    """Read one Capture, or several, with fitted detectors.

    Raises:
        NotFittedError: a detector is not.
    """
    captures = [captures] if isinstance(captures, Capture) else captures
    return Readings.joined([in_numbers(read_all(detectors, capture), capture.logits) for capture in captures])


class Read(NamedTuple):
    """What was read of B images: the logits [B, K], and every detector's Reading, by name."""

    logits: Tensor
    readings: dict[str, Reading]


class Reader(Protocol):
    """Reads images [B, C, H, W], float32 in [0, 1]. Safe to call from several threads."""

    engine: str
    """What computes."""
    stages: tuple[str, ...]
    """What `observe` is told of."""
    device: torch.device
    """Where."""

    def __call__(self, images: Tensor, observe: Observe | None = None) -> Read:
        """Read a batch; `observe` gets the seconds of each stage."""

    def classify(self, images: Tensor) -> Tensor:
        """The logits alone, [B, K]."""

    def to(self, device: str | torch.device) -> None:
        """Compute elsewhere. Not while others call it.

        Raises:
            ConfigError: there is no such device.
        """

    def close(self) -> None:
        """Let go of what it holds."""


ReaderT_co = TypeVar("ReaderT_co", bound=Reader, default=Reader, covariant=True)


class TorchReader:
    """The classifier under hooks, in torch.

    Args:
        classifier: maps normalised images [B, C, H, W] to logits [B, K]; in eval mode.
        detectors: fitted, by name.
        preprocessing: the normalisation.
    """

    engine = "torch"

    def __init__(self, classifier: nn.Module, detectors: Mapping[str, Detector], preprocessing: Preprocessing) -> None:
        state = chain(classifier.parameters(), classifier.buffers())
        self.device = next((one.device for one in state), torch.device("cpu"))
        self.detectors = detectors
        self.stages = ("classify", *detectors)
        self.tap = tap_for(classifier, detectors.values(), preprocessing.normalize)

    @torch.no_grad()
    def __call__(self, images: Tensor, observe: Observe | None = None) -> Read:
        """Read a batch with one call of the classifier; the stages are "classify" and every detector.

        Raises:
            LayerError: the classifier does not do what was asked of it when the detectors were fitted.
        """
        start = time.perf_counter()
        capture = self.tap(images)
        if observe is not None:
            observe("classify", time.perf_counter() - start)
        return Read(capture.logits, read_all(self.detectors, capture, observe))

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """The logits alone, [B, K]."""
        return self.tap.classify(images)

    def to(self, device: str | torch.device) -> None:
        """Move the classifier and the detectors. Not while others call it.

        Raises:
            ConfigError: there is no such device.
        """
        try:
            for module in (self.tap.module, *self.detectors.values()):
                module.to(device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA raises an AssertionError
            raise ConfigError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from None
        self.device = torch.device(device)

    def close(self) -> None:
        """Remove the hooks from the classifier."""
        self.tap.close()
