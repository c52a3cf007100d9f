"""Constellation: how far an input's views (the same image, altered a little) stray from it in activations and answer.

Source: Pardo et al. (2019), section 3.4, draws the constellation of one input under noise; the views with fewer bits
or a median filter are Xu et al.'s feature squeezing (2018), read here in the activations, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from askance.detectors.detector import ExplainedByOptions, Inputs
from askance.detectors.ranks import around, p_value, yardstick
from askance.detectors.tap import EMPTY_STREAM, Capture, CaptureStream
from askance.detectors.tensors import generator
from askance.detectors.views import add_noise, median_filter, reduce_bits
from askance.errors import DataError
from askance.screening.kinds.constellation import ConstellationOptions
from askance.screening.options import Options
from askance.screening.reading import Reading

TABULATED_INPUTS = 2000  # clean ones that are enough for a yardstick; each costs a forward pass for every view
SHORTEST = 1e-12  # below which a displacement counts as none


class Constellation(ExplainedByOptions[ConstellationOptions]):
    """Suspicion by instability under alterations that leave a natural image what it is.

    Components, for each kind of view, averaged over its views: `drop:<kind>`, how much log-probability the predicted
    class loses; `shift:<kind>`, the L1 distance between the softmaxes; `displacement:<layer>:<kind>`, how far the
    activation moves, as a share of its length (either way: an attack can make it move less). And `grain:<layer>`, the
    log of the displacement by the median filters over that by noise: a perturbation is fine-grained, so that a filter
    undoes more, and added noise less, than in a natural image.
    Score: -log of the product of the ranks, among clean inputs, of the mean shift and the mean grain.

    Args:
        options: the parameters.
        shape: (C, H, W) of the inputs, to draw the noise for; not needed by `restore`.
    """

    kind: ClassVar[str] = ConstellationOptions.kind
    options_class: ClassVar[type[Options]] = ConstellationOptions
    patterns: Tensor
    yardsticks: Tensor

    def __init__(self, options: ConstellationOptions, shape: tuple[int, int, int] | None = None) -> None:
        super().__init__(options)
        drawn = generator(options.seed)
        noise = torch.empty(0) if shape is None else torch.randn(options.noise_views, *shape, generator=drawn)
        self.register_buffer("patterns", options.noise * noise)
        self.register_buffer("yardsticks", torch.empty(0))

    @classmethod
    def create(cls, options: ConstellationOptions, inputs: Inputs) -> Self:
        """With noise for inputs of this shape."""
        return cls(options, inputs.shape)

    @property
    def is_fitted(self) -> bool:
        """Whether the clean readings are tabulated."""
        return self.yardsticks.numel() > 0

    def views(self, images: Tensor) -> Tensor:
        """Noisy, rounded and filtered views, [B, C, H, W] -> [B, V, C, H, W] in [0, 1]."""
        squeezed = [reduce_bits(images, bits) for bits in self.options.bit_depths]
        squeezed += [median_filter(images, size) for size in self.options.median_sizes]
        return torch.cat([add_noise(images, self.patterns), *(view.unsqueeze(1) for view in squeezed)], dim=1)

    @torch.no_grad()
    def fit(self, clean: CaptureStream, held_out: CaptureStream | None = None) -> Self:  # noqa: ARG002
        """Tabulate the mean shift and the mean grain of the first clean inputs: part of a walk.

        Raises:
            DataError: the stream is empty, or its Captures have no views.
        """
        readings: list[Tensor] = []
        for capture in clean:
            readings.append(self._summary(self._components(capture)))
            if sum(reading.shape[1] for reading in readings) >= TABULATED_INPUTS:
                break
        if not readings:
            raise DataError(EMPTY_STREAM)
        self.yardsticks = yardstick(torch.cat(readings, dim=1))
        return self

    def _components(self, capture: Capture) -> dict[str, Tensor]:
        if capture.views is None:
            raise DataError("the constellation reads altered views of its inputs: this Capture has no views")
        groups = self.options.groups()
        # in float64, where a confident classifier's log-probabilities, of 1e-8 say, are still numbers
        own = capture.logits.double().log_softmax(dim=1)
        views = capture.views.logits.double().log_softmax(dim=1).view(own.shape[0], -1, own.shape[1])
        predicted = capture.predicted[:, None]
        held = views.gather(2, predicted.unsqueeze(2).expand(-1, views.shape[1], 1)).squeeze(2)
        readings = {
            "drop": own.gather(1, predicted) - held,
            "shift": (own.exp().unsqueeze(1) - views.exp()).abs().sum(dim=2),
        }
        for layer in self.layers:
            activation = capture.flat(layer)
            moved = capture.views.flat(layer).view(*views.shape[:2], -1) - activation.unsqueeze(1)
            length = torch.linalg.vector_norm(activation, dim=1, keepdim=True).clamp_min(SHORTEST)
            readings[f"displacement:{layer}"] = torch.linalg.vector_norm(moved, dim=2) / length
        components = {
            f"{name}:{kind}": part.mean(dim=1).to(capture.logits.dtype)
            for name, values in readings.items()
            for kind, part in zip(groups, values.split(list(groups.values()), dim=1), strict=True)
        }
        medians = [f"median_{size}" for size in self.options.median_sizes]
        for layer in self.layers if medians else ():
            filtered = torch.stack([components[f"displacement:{layer}:{kind}"] for kind in medians]).mean(dim=0)
            noisy = components[f"displacement:{layer}:noise"]
            components[f"grain:{layer}"] = (filtered.clamp_min(SHORTEST) / noisy.clamp_min(SHORTEST)).log()
        return components

    def _summary(self, components: Mapping[str, Tensor]) -> Tensor:
        """The mean shift and the mean grain (if there are median filters), [1 or 2, B]."""
        means = [
            torch.stack([values for name, values in components.items() if name.startswith(f"{reading}:")])
            for reading in ("shift", "grain")
            if any(name.startswith(f"{reading}:") for name in components)
        ]
        return torch.stack([values.mean(dim=0) for values in means])

    def read(self, capture: Capture) -> Reading[Tensor]:
        """All components, and the score of their means."""
        self.require_fitted()
        components = self._components(capture)
        summary = self._summary(components)
        ranks = p_value(torch.stack([summary, *around(summary, self.yardsticks)]), self.yardsticks)
        score, low, high = -ranks.log().sum(dim=1)
        either = frozenset(name for name in components if name.startswith("displacement:"))
        evidence = {"values": torch.stack(list(components.values()), dim=1), "p": ranks[0].T}
        dtype, slack = capture.logits.dtype, torch.maximum(high - score, score - low)
        return Reading(score.to(dtype), components, either, evidence, slack=slack.to(dtype))
