"""The contract of a detector: fitted on a stream of Captures, it reads a Capture and says how suspicious it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, final

from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from typing_extensions import TypeVar

from askance.detectors.tap import Capture, CaptureStream, Tap
from askance.errors import BundleError, NotFittedError
from askance.screening.options import ExplainingOptions, Options
from askance.screening.reading import Reading

OptionsT = TypeVar("OptionsT", bound=Options, default=Any)
"""The options of a detector; `Detector` alone is one with options of any kind."""
ExplainingOptionsT = TypeVar("ExplainingOptionsT", bound=ExplainingOptions, default=Any)

CHANCE_MARGIN = 1.2  # times one in K: agreement up to here is no better than guessing


@dataclass(frozen=True)
class Inputs:
    """What a detector may ask of the classifier that it is made for.

    Attributes:
        shape: (C, H, W) of an input.
        class_names: K names, in the order of the logits.
        word_vectors: of the classes in their order, [K, n], where the config has them.
    """

    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    word_vectors: Tensor | None = None


class Detector(nn.Module, ABC, Generic[OptionsT]):
    """Base class of the detectors.

    A subclass names its `kind` and `options_class`, keeps its learned state in buffers or parameters (so that
    `.to(device)` works and the state is exactly the tensors in the bundle), and writes `fit`, `read` and `explain_one`.
    Its constructor can do with the options alone: that is how a bundle makes it, before `restore`.

    Args:
        options: the parameters.
    """

    kind: ClassVar[str]
    """The name in configs, bundles and metrics."""
    options_class: ClassVar[type[Options]]
    """What its section of a config holds."""

    def __init__(self, options: OptionsT) -> None:
        super().__init__()
        self.options = options

    @classmethod
    def create(cls, options: OptionsT, inputs: Inputs) -> Self:  # noqa: ARG003
        """A new detector, to be fitted to the classifier that `inputs` tells of.

        Raises:
            AskanceError: it cannot be used with such a classifier.
        """
        return cls(options)

    @property
    @abstractmethod
    def layers(self) -> tuple[str, ...]:
        """The layers it reads."""

    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """Whether it can score."""

    @property
    def view_layers(self) -> tuple[str, ...]:
        """The layers it reads of views of the input; without any it asks for no views."""
        return ()

    def views(self, images: Tensor) -> Tensor:
        """The views it asks for, [B, C, H, W] -> [B, V, C, H, W], pixels in [0, 1]."""
        raise NotImplementedError(f"{self.kind} asks for no views")

    def check(self, capture: Capture, inputs: Inputs) -> None:
        """Look at what the classifier shows of a few inputs, before anything is fitted.

        Args:
            capture: of all `layers`.
            inputs: what `create` was told.

        Raises:
            LayerError: a layer gives what this detector cannot read.
        """

    def settle(self, sample: CaptureStream, of: int | None = None) -> None:
        """Put numbers in place of options that name an aim instead; without any there is nothing to do.

        Called before `fit`, so that `options` are then all that the fitted state depends on.

        Args:
            sample: Captures of some of the inputs that it is to be fitted on.
            of: how many these are in all; None: the sample is all.

        Raises:
            AskanceError: the aim cannot be met.
        """

    @abstractmethod
    def fit(self, clean: CaptureStream, held_out: CaptureStream | None = None) -> Self:
        """Learn from a re-iterable stream of Captures of clean inputs; return self.

        Args:
            clean: Captures with labels, of inputs that the classifier may have been trained on.
            held_out: the same of inputs that it was not trained on, where there are some.

        Raises:
            AskanceError: the stream is empty, or nothing can be learned from it.
        """

    def diagnose(self, clean: CaptureStream, held_out: CaptureStream) -> dict[str, Any]:  # noqa: ARG002
        """How well it has learned the classifier, JSON-ready, in its paper's own figures; empty: it has none.

        Args:
            clean: Captures with labels of inputs that it was fitted on; not all of them.
            held_out: the same of inputs that nothing was fitted on.

        Raises:
            NotFittedError: before `fit`.
        """
        return {}

    def doubts(self, figures: Mapping[str, Any], classes: int) -> dict[str, str]:  # noqa: ARG002
        """Which layers its own figures show to be of no use, and why, {layer: why}.

        Args:
            figures: of `diagnose`.
            classes: K.
        """
        return {}

    @abstractmethod
    def read(self, capture: Capture) -> Reading[Tensor]:
        """Score, components and evidence of each input, from one look at the activations.

        Raises:
            NotFittedError: before `fit`.
        """

    @abstractmethod
    def explain_one(self, evidence: Mapping[str, Any]) -> dict[str, Any]:
        """Put one input's evidence (tensors or arrays, without the batch dimension) in a small JSON-ready dict for
        people.
        """

    @final
    def restore(self, tensors: Mapping[str, Tensor]) -> Self:
        """Take the state that `state_dict()` gave, whatever its shapes; return self, fitted as far as that was.

        Raises:
            BundleError: names are missing or unknown: the state belongs to other options.
        """
        expected = set(self.state_dict())
        missing, extra = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
        if missing or extra:
            raise BundleError(
                f"the state of {self.kind} does not fit its options: missing {missing}, unexpected {extra}"
            )
        for name, tensor in tensors.items():
            path, _, leaf = name.rpartition(".")
            module = self.get_submodule(path)
            own = tensor.clone()  # state may be summed in place: never into somebody else's tensors
            is_parameter = leaf in dict(module.named_parameters(recurse=False))
            setattr(module, leaf, nn.Parameter(own, requires_grad=False) if is_parameter else own)
        self.prepare()
        return self

    @classmethod
    @final
    def restored(cls, options: Mapping[str, Any], content: bytes) -> Self:
        """As a bundle holds it.

        Args:
            options: as plain data.
            content: of the safetensors file with its state.

        Raises:
            BundleError: the state belongs to other options.
            pydantic.ValidationError: the options are not its.
        """
        own: Any = cls.options_class.model_validate(options)
        return cls(own).restore(load_safetensors(content)).eval()

    def prepare(self) -> None:
        """Derive what scoring needs from the fitted state (kept in non-persistent buffers); called when it changes."""

    @final
    def score(self, capture: Capture) -> Tensor:
        """Return the scores, [B], higher = more suspicious."""
        return self.read(capture).score

    @final
    def components(self, capture: Capture) -> Mapping[str, Tensor]:
        """Return the named readings behind the score, {name: [B]}."""
        return self.read(capture).components

    @final
    def explain(self, capture: Capture) -> list[dict[str, Any]]:
        """Return one small dict for people per input."""
        evidence = self.read(capture).evidence
        return [self.explain_one({name: values[i] for name, values in evidence.items()}) for i in range(len(capture))]

    def require_fitted(self) -> None:
        """Raise NotFittedError unless fitted."""
        if not self.is_fitted:
            raise NotFittedError(self)


class ExplainedByOptions(Detector[ExplainingOptionsT]):
    """A detector whose options say which layers it reads, and what its evidence means."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers it reads."""
        return self.options.layers

    @property
    def view_layers(self) -> tuple[str, ...]:
        """The layers it reads of views of the input; without any it asks for no views."""
        return self.options.view_layers

    def explain_one(self, evidence: Mapping[str, Any]) -> dict[str, Any]:
        """Put one input's evidence in a small JSON-ready dict for people."""
        return self.options.explain_one(evidence)


def tap_for(
    classifier: nn.Module, detectors: Iterable[Detector], preprocess: Callable[[Tensor], Tensor] | None = None
) -> Tap:
    """A Tap that sees all that these detectors read; at most one of them asks for views."""
    detectors = list(detectors)
    layers = [layer for detector in detectors for layer in detector.layers]
    viewer = next((detector for detector in detectors if detector.view_layers), None)
    if viewer is None:
        return Tap(classifier, layers, preprocess)
    return Tap(classifier, layers, preprocess, viewer.views, viewer.view_layers)
