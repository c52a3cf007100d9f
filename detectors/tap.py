"""Tap: one forward pass of a classifier under hooks, giving a Capture of its hidden activations."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from askance.errors import LayerError, did_you_mean

EMPTY_STREAM = "the data stream is empty: expected at least one input"


@dataclass(frozen=True)
class Capture:
    """What one forward pass showed.

    Attributes:
        logits: the classifier's outputs o(x), [B, K].
        activations: each tapped layer's output a_l(x), {layer: [B, ...]}.
        labels: the true classes [B] where they are known (offline only), else None.
        views: what the classifier made of V views of each input, view by view, if the Tap takes any: a
            Capture of B * V inputs, the V views of an input in a row.
    """

    logits: Tensor
    activations: Mapping[str, Tensor]
    labels: Tensor | None = None
    views: Capture | None = None

    def __len__(self) -> int:
        return self.logits.shape[0]

    @property
    def predicted(self) -> Tensor:
        """The predicted class c(x) = argmax o(x), int64 [B]."""
        return self.logits.argmax(dim=1)

    def flat(self, layer: str) -> Tensor:
        """Return a_l(x) flattened to [B, D_l].

        Raises:
            LayerError: the layer was not tapped.
        """
        if layer not in self.activations:
            raise LayerError(f"layer {layer!r} was not tapped: {did_you_mean(layer, self.activations)}")
        return self.activations[layer].flatten(1)

    def select(self, index: Tensor) -> Capture:
        """Return the Capture of the inputs at `index` (integer positions or a boolean mask, [B])."""
        views = self.views
        if views is not None:
            places = torch.arange(len(views), device=index.device).view(len(self), -1)
            views = views.select(places[index].flatten())
        return Capture(
            self.logits[index],
            {layer: a[index] for layer, a in self.activations.items()},
            None if self.labels is None else self.labels[index],
            views,
        )


class CaptureStream(Protocol):
    """A re-iterable of Captures in data order; each iteration starts anew, and need not fit in memory."""

    def __iter__(self) -> Iterator[Capture]: ...


class Tap:
    """Runs a classifier once under forward hooks and returns what it saw.

    Captures belong to the call that made them: hooks write to thread-local storage, so any number of threads
    may share one Tap. The module is left as it was found: only hooks are added, and `close` removes them.
    Gradient mode is the caller's: under `torch.no_grad()` nothing is recorded, otherwise captures are differentiable.

    Args:
        module: the classifier, in eval mode.
        layers: names of submodules as `module.named_modules()` spells them.
        preprocess: applied to the images before the module (normalisation), so that callers stay in pixel space.
        views: gives V views of each image, [B, C, H, W] -> [B, V, C, H, W]; they join the batch: one
            call of the classifier serves all.
        view_layers: the layers whose activations are kept for the views, too.
        training: take a module in training mode, too, as one that learns is.

    Raises:
        LayerError: a name is not a submodule.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[str],
        preprocess: Callable[[Tensor], Tensor] | None = None,
        views: Callable[[Tensor], Tensor] | None = None,
        view_layers: Sequence[str] = (),
        *,
        training: bool = False,
    ) -> None:
        modules = dict(module.named_modules())
        self.layers = tuple(dict.fromkeys((*layers, *view_layers)))
        self.view_layers = frozenset(view_layers)
        for layer in self.layers:
            if not layer or layer not in modules:
                known = [name for name in modules if name]
                raise LayerError(f"the classifier has no layer {layer!r}: {did_you_mean(layer, known)}")
        self.module = module
        self.preprocess = preprocess
        self.views = views
        self._training = training
        self._local = threading.local()
        self._handles = [modules[layer].register_forward_hook(self._hook(layer)) for layer in self.layers]

    def _hook(self, layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen: dict[str, Tensor] | None = getattr(self._local, "seen", None)
            if seen is None:  # somebody else's forward pass of the same module
                return
            if not isinstance(output, Tensor):
                raise LayerError(
                    f"layer {layer!r} returns {type(output).__name__}, not a tensor: tap one of its submodules"
                )
            if layer in seen:
                raise LayerError(
                    f"layer {layer!r} runs more than once in a forward pass, so its activation is ambiguous: "
                    "tap a layer that runs once"
                )
            # A copy, because a later in-place operation (ReLU(inplace=True), `x += y`) would overwrite it.
            if self.views is not None and layer not in self.view_layers:
                whole, inputs = self._local.batch
                output = output[:inputs] if output.ndim > 0 and output.shape[0] == whole else output
            seen[layer] = output.clone()

        return hook

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Capture:
        """Classify `images` [B, C, H, W] and return the Capture.

        Raises:
            LayerError: a tapped layer did not run or did not give one [B, ...] tensor, the logits are not [B, K],
                the module is in training mode and must not, or the Tap is closed.
        """
        if not self._handles and self.layers:
            raise LayerError("this Tap is closed: open a new one")
        if not self._training and any(module.training for module in self.module.modules()):
            raise LayerError("the classifier, or a part of it, is in training mode: call .eval() on it first")
        inputs = images.shape[0]
        if self.views is not None:
            images = torch.cat([images, self.views(images).flatten(0, 1)])
        seen: dict[str, Tensor] = {}
        self._local.seen, self._local.batch = seen, (images.shape[0], inputs)
        try:
            logits = self.classify(images)
        finally:
            self._local.seen = None
        for layer in self.layers:
            if layer not in seen:
                raise LayerError(f"layer {layer!r} never ran in the forward pass: tap a layer that does")
            expected = images.shape[0] if layer in self.view_layers else inputs
            if seen[layer].ndim < 2 or seen[layer].shape[0] != expected:
                raise LayerError(
                    f"layer {layer!r} gives {list(seen[layer].shape)} for a batch of {expected}: "
                    "expected [B, ...], one activation for each input"
                )
        if self.views is None:
            return Capture(logits, {layer: seen[layer] for layer in self.layers}, labels)
        views = Capture(logits[inputs:], {layer: seen[layer][inputs:] for layer in self.view_layers})
        return Capture(logits[:inputs], {layer: seen[layer][:inputs] for layer in self.layers}, labels, views)

    def classify(self, images: Tensor) -> Tensor:
        """The logits [B, K] of `images` [B, C, H, W] alone: nothing is captured, there are no views.

        Raises:
            LayerError: the logits are not [B, K].
        """
        logits = self.module(images if self.preprocess is None else self.preprocess(images))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != images.shape[0]:
            got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise LayerError(f"the classifier must return logits [B, K]; for B = {images.shape[0]} it gave {got}")
        return logits

    def close(self) -> None:
        """Remove the hooks; the module is as before."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
