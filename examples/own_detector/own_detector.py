"""A detector of one's own: suspicion by an activation whose length is unlike that of clean images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from askance.detectors import Capture, CaptureStream, Detector, Options, Reading


class ActivationNormOptions(Options):
    """Parameters of ActivationNorm: what a config's section [detectors.activation_norm] holds.

    Attributes:
        layer: whose activation is measured.
    """

    layer: str


class ActivationNorm(Detector[ActivationNormOptions]):
    """Score: how many standard deviations the length of the layer's activation lies from the clean mean."""

    kind: ClassVar[str] = "activation_norm"
    options_class: ClassVar[type[ActivationNormOptions]] = ActivationNormOptions
    mean: Tensor
    deviation: Tensor

    def __init__(self, options: ActivationNormOptions) -> None:
        super().__init__(options)
        # What is learned lives in buffers: it travels in the bundle, and to another device.
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("deviation", torch.empty(0))

    @property
    def layers(self) -> tuple[str, ...]:
        """The layer."""
        return (self.options.layer,)

    @property
    def is_fitted(self) -> bool:
        """Whether the clean mean is known."""
        return self.mean.numel() > 0

    def _length(self, capture: Capture) -> Tensor:
        length: Tensor = capture.flat(self.options.layer).norm(dim=1)
        return length

    @torch.no_grad()
    def fit(self, clean: CaptureStream, held_out: CaptureStream | None = None) -> Self:  # noqa: ARG002
        """Learn the mean and the standard deviation of the length."""
        lengths = torch.cat([self._length(capture) for capture in clean])
        self.mean, self.deviation = lengths.mean(), lengths.std()
        return self

    def read(self, capture: Capture) -> Reading:
        """The deviation either way is the score; fusion gets the length itself and looks at both sides."""
        self.require_fitted()
        length = self._length(capture)
        score = ((length - self.mean) / self.deviation).abs()
        return Reading(score, {"length": length}, frozenset({"length"}), {"length": length})

    def explain_one(self, evidence: Mapping[str, Any]) -> dict[str, Any]:
        """The length beside what is usual."""
        return {"length": round(float(evidence["length"]), 4), "usual": round(float(self.mean), 4)}
