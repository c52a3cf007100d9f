"""The layers of a classifier, as one forward pass shows them: what a detector could tap, and where it stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from askance.classifiers.shared_state import undone
from askance.detectors.self_organizing_map import channels_last
from askance.screening.preprocessing import Preprocessing

Form = Literal["map", "vector", "other"]
"""[C, H, W], [D], and whatever else; an image of that many numbers in another form has no map of it."""


@dataclass(frozen=True)
class Layer:
    """What one forward pass showed of a layer.

    Attributes:
        name: as `named_modules()` spells it.
        kind: its class.
        shape: of what it gives for one image; empty where that is no tensor, or it does not run.
        form: of the same.
        depth: the share of the forward pass that is done once it has run, in (0, 1]; 0 where it does not.
        fault: why no detector can tap it; empty where one can.
        has_weights: whether it, or a part of it, is a convolution, a linear layer, or another with a weight matrix.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    form: Form
    depth: float
    fault: str
    has_weights: bool

    @property
    def width(self) -> int:
        """Numbers for each image."""
        return math.prod(self.shape) if self.shape else 0

    @property
    def taps(self) -> str:
        """What can tap it, in a few words: "all detectors", "all but maps", or why none."""
        return self.fault or ("all but maps" if self.form == "other" else "all detectors")


def layers_of(classifier: nn.Module, preprocessing: Preprocessing, pixels: Tensor) -> list[Layer]:
    """All layers in the order in which they are done, those that never run last.

    Args:
        classifier: in eval mode.
        preprocessing: in front of it.
        pixels: of two images or more, float32 [N, C, H, W] in [0, 1].
    """
    runs: dict[str, list[tuple[Any, int]]] = {}
    leaves = 0

    def hook(name: str, *, leaf: bool) -> Callable[[nn.Module, Any, Any], None]:
        def after(_module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal leaves
            leaves += leaf
            runs.setdefault(name, []).append((output.clone() if isinstance(output, Tensor) else output, leaves))

        return after

    modules = {name: module for name, module in classifier.named_modules() if name}
    handles = [
        module.register_forward_hook(hook(name, leaf=not any(module.children()))) for name, module in modules.items()
    ]
    try:
        with undone("the classifier"), torch.no_grad():
            classifier(preprocessing.normalize(pixels))
    finally:
        for handle in handles:
            handle.remove()
    found = [
        _layer(name, modules[name], [output for output, _ in seen], seen[-1][1] / max(leaves, 1), preprocessing, pixels)
        for name, seen in runs.items()
    ]
    return found + [
        Layer(name, type(module).__name__, (), "other", 0.0, "never runs", has_weights=_has_weights(module))
        for name, module in modules.items()
        if name not in runs
    ]


def _layer(
    name: str, module: nn.Module, outputs: list[Any], depth: float, preprocessing: Preprocessing, pixels: Tensor
) -> Layer:
    shape: tuple[int, ...] = ()
    form: Form = "other"
    output, fault = outputs[0], ""
    if isinstance(output, Tensor):
        shape = tuple(output.shape[1:])
        if output.ndim == 2:
            form = "vector"
        elif output.ndim == 4 and not channels_last(output, preprocessing.shape):
            form = "map"
    if len(outputs) > 1:
        fault = f"runs {len(outputs)} times"
    elif not isinstance(output, Tensor):
        fault = f"gives {type(output).__name__}, not a tensor"
    elif output.ndim < 2 or len(output) != len(pixels):
        fault = f"gives {list(output.shape)} for {len(pixels)} images"
    elif bool((output == output[:1]).all()):
        fault = "the same for every image"
    return Layer(name, type(module).__name__, shape, form, depth, fault, has_weights=_has_weights(module))


def _has_weights(module: nn.Module) -> bool:
    """Norms and biases, whose parameters are vectors, do not count."""
    return any(parameter.ndim > 1 for parameter in module.parameters())
