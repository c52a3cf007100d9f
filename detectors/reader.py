"""Reading in torch: the classifier under hooks, and every detector's reading of what they show."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from askance.detectors.detector import Detector, tap_for
from askance.detectors.tap import Capture
from askance.errors import ConfigError
from askance.images import Batch
from askance.judgement import Readings
from askance.screening.preprocessing import Preprocessing
from askance.screening.reading import Observe, Read, Reading, Rows, in_numbers


def read_all(
    detectors: Mapping[str, Detector], capture: Capture, observe: Observe | None = None
) -> dict[str, Reading[Tensor]]:
    """Every detector's Reading of a Capture, {name: Reading}; `observe` gets each one's seconds."""
    readings = {}
    for name, detector in detectors.items():
        start = time.perf_counter()
        readings[name] = detector.read(capture)
        if observe is not None:
            observe(name, time.perf_counter() - start)
    return readings


def together(components: Mapping[str, Tensor]) -> Tensor:
    """A Reading's components as one tensor, [F, B]."""
    return components.together if isinstance(components, Rows) else torch.stack(list(components.values()))


def array(values: Tensor) -> NDArray[Any]:
    """Numbers as numpy has them, in float32 where it has not their precision."""
    values = values.detach().cpu()
    array: NDArray[Any] = (values.float() if values.dtype in (torch.float16, torch.bfloat16) else values).numpy()
    return array


def as_read(readings: Mapping[str, Reading[Tensor]], logits: Tensor) -> Read:
    """What was read in torch, in numpy."""
    return Read(array(logits), {name: _in_numpy(one) for name, one in readings.items()})


def _in_numpy(reading: Reading[Tensor]) -> Reading[NDArray[Any]]:
    # components in one copy from the device, not one for each
    components = Rows(list(reading.components), array(together(reading.components).float()))
    return replace(replace(reading, components={}).each(array), components=components)


@torch.no_grad()
def read(detectors: Mapping[str, Detector], captures: Capture | Iterable[Capture]) -> Readings:
    """Read one Capture, or several, with fitted detectors.

    Raises:
        NotFittedError: a detector is not.
    """
    captures = [captures] if isinstance(captures, Capture) else captures
    found = (as_read(read_all(detectors, capture), capture.logits) for capture in captures)
    return Readings.joined([in_numbers(one.readings, one.logits) for one in found])


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
    def __call__(self, images: Batch, observe: Observe | None = None) -> Read:
        """Read a batch with one call of the classifier; the stages are "classify" and every detector.

        Raises:
            LayerError: the classifier does not do what was asked of it when the detectors were fitted.
        """
        start = time.perf_counter()
        capture = self.tap(self._tensor(images))
        if observe is not None:
            observe("classify", time.perf_counter() - start)
        return as_read(read_all(self.detectors, capture, observe), capture.logits)

    @torch.no_grad()
    def classify(self, images: Batch) -> NDArray[Any]:
        """The logits alone, [B, K]."""
        return array(self.tap.classify(self._tensor(images)))

    def _tensor(self, images: Batch) -> Tensor:
        return torch.as_tensor(images, device=self.device)

    def to(self, device: str) -> None:
        """Move the classifier and the detectors. Not while others call it.

        Raises:
            ConfigError: there is no such device.
        """
        try:
            for module in (self.tap.module, *self.detectors.values()):
                module.to(device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA raises an AssertionError
            raise ConfigError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
        self.device = torch.device(device)

    def close(self) -> None:
        """Remove the hooks from the classifier."""
        self.tap.close()
