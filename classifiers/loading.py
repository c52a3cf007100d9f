"""Loading: a classifier by name or import path, and its weights into it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from askance.classifiers.allconv import AllConv
from askance.classifiers.checkpoints import fitting
from askance.classifiers.digits import DigitsCNN
from askance.classifiers.lenet import LeNet
from askance.classifiers.modules import in_eval_mode, unwrapped
from askance.classifiers.net1 import Net1
from askance.classifiers.resnet import resnet20, resnet32, resnet44, resnet56
from askance.classifiers.shared_state import undone
from askance.classifiers.torchvision_compat import prepare_torchvision
from askance.classifiers.zoos import ZOOS, Factory
from askance.errors import ConfigError, did_you_mean, one_line, printable

EXAMPLES: Mapping[str, Factory] = {
    "digits_cnn": DigitsCNN,
    "lenet": LeNet,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "allconv": AllConv,
    "net1": Net1,
}
"""The example classifiers by the names that configs use."""

SHOWN = 3  # names of missing or unexpected weights that an error spells out


def build_classifier(
    factory: str | None, arguments: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Build a classifier and load its weights.

    Args:
        factory: an example's name ("lenet"), a model of a zoo's ("torchvision:resnet18", "timm:resnet18",
            "transformers:vit", never with weights from a hub), or an import path to a callable
            ("my_package.models:build").
        arguments: keyword arguments of the factory.
        weights: the state dict, as `load_strictly` takes it. None leaves the initial weights.

    Returns:
        The classifier in eval mode.

    Raises:
        ConfigError: the factory cannot be found, fails or does not make an `nn.Module`, or the weights are not its.
    """
    if factory is None:
        raise ConfigError(
            "the bundle names no factory for its classifier: open it with askance.open(..., classifier=MODULE), or "
            "calibrate with factory='package.module:callable'"
        )
    own = factory in EXAMPLES  # whose initial weights go by the caller's seed
    make = _find(factory)
    try:
        with nullcontext() if own else undone(f"classifier {factory!r}"):
            classifier = make(**arguments)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise ConfigError(f"classifier {factory!r} cannot be built with ({shown}): {one_line(error)}") from error
    if not isinstance(classifier, nn.Module):
        raise ConfigError(f"classifier {factory!r} gives {type(classifier).__name__}, expected a torch.nn.Module")
    classifier = unwrapped(classifier)
    if weights is not None:
        load_strictly(factory, classifier, weights)
    return in_eval_mode(classifier)


def _find(factory: str) -> Factory:
    source, colon, name = factory.partition(":")
    if not colon:
        if factory not in EXAMPLES:
            raise ConfigError(
                f"unknown classifier {factory!r}: {did_you_mean(factory, EXAMPLES)}, "
                'or "torchvision:NAME", "timm:NAME", "transformers:NAME", or an import path "package.module:callable"'
            )
        return EXAMPLES[factory]
    return ZOOS[source](name) if source in ZOOS else _imported(factory, source, name)


def _imported(factory: str, module_name: str, attributes: str) -> Factory:
    if not module_name or not attributes:
        raise ConfigError(f'classifier {factory!r} is not an import path: expected "package.module:callable"')
    prepare_torchvision()  # which their code may import
    try:
        with undone(f"classifier {factory!r}"):
            found: Any = importlib.import_module(module_name)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"classifier {factory!r}: cannot import {module_name!r} ({one_line(error)}); is its folder on PYTHONPATH?"
        ) from error
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise ConfigError(
                f"classifier {factory!r}: {module_name!r} has no {attributes!r}: {did_you_mean(attribute, public)}"
            )
        found = getattr(found, attribute)
    if not callable(found):
        raise ConfigError(f"classifier {factory!r} is {type(found).__name__}, not callable")
    make: Factory = found
    return make


def load_strictly(factory: str, classifier: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a state dict in place: every name and shape its own, but for what savers do.

    Prefixes come off as in `checkpoints.fitting`. BatchNorm's batch counters may be absent, and so may the second
    of two names of one tensor, which safetensors' own saver leaves out.

    Args:
        factory: what the classifier is called in errors.
        classifier: whose weights are replaced.
        weights: the state dict.

    Raises:
        ConfigError: the weights are not its.
    """
    weights = fitting(weights, classifier)
    own = _with_values(classifier)
    for name, tensor in weights.items():
        if name in own and own[name].shape != tensor.shape:
            raise ConfigError(
                f"the weights do not fit classifier {factory!r}: {name} is {list(tensor.shape)}, "
                f"expected {list(own[name].shape)}"
            )
    try:
        # A plain dict carries no version, so that BatchNorm fills in the batch counters that some files lack.
        keys = classifier.load_state_dict(weights, strict=False)
    except Exception as error:  # a module's own hooks may raise anything
        raise ConfigError(f"the weights do not fit classifier {factory!r}: {one_line(error)}") from error
    own = _with_values(classifier)  # those of lazy layers, too, which have their shapes from the weights
    loaded = {(own[name].data_ptr(), own[name].shape) for name in weights if name in own}
    missing = [
        name for name in keys.missing_keys if name not in own or (own[name].data_ptr(), own[name].shape) not in loaded
    ]
    if missing or keys.unexpected_keys:
        parts = [
            f"{kind} {_some(names)}"
            for kind, names in (("missing", missing), ("unexpected", keys.unexpected_keys))
            if names
        ]
        raise ConfigError(f"the weights do not fit classifier {factory!r}: {'; '.join(parts)}")


def _with_values(classifier: nn.Module) -> dict[str, Tensor]:
    """What its state dict has of tensors with values: neither lazy layers nor extra states."""
    return {
        name: value
        for name, value in classifier.state_dict().items()
        if isinstance(value, Tensor) and not is_lazy(value)
    }


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(printable, names[:SHOWN])) + more
