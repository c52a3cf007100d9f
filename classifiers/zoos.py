"""Zoos: classifiers of torchvision, timm and transformers by name, built here and never downloaded."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from askance.classifiers.shared_state import undone
from askance.classifiers.torchvision_compat import import_torchvision, prepare_torchvision
from askance.detectors.output import select_output
from askance.errors import ConfigError, did_you_mean, one_line

Factory = Callable[..., nn.Module]

TORCHVISION, TIMM, TRANSFORMERS = "torchvision", "timm", "transformers"
# Transformers takes the code of attention from a hub where a configuration says so. This is its own, and every model's.
OWN_CODE: Mapping[str, Any] = {"attn_implementation": "eager"}


def _torchvision(name: str) -> Factory:
    models = import_torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(f"unknown torchvision model {name!r}: {did_you_mean(name, known)}")

    def make(**arguments: Any) -> nn.Module:
        _refuse(f"{TORCHVISION}:{name}", arguments, {"weights", "weights_backbone", "pretrained"})
        model: nn.Module = models.get_model(name, weights=None, **arguments)
        return model

    return make


def _timm(name: str) -> Factory:
    timm = _installed(TIMM, name)
    if ":" in name or "/" in name:
        raise ConfigError(
            f'classifier {f"{TIMM}:{name}"!r} names a hub or a folder: expected one of timm\'s own, "timm:resnet18"; '
            "weights come from a file, never from a hub"
        )
    if not timm.is_model(name):
        raise ConfigError(f"unknown timm model {name!r}: {did_you_mean(name, timm.list_models())}")

    def make(**arguments: Any) -> nn.Module:
        of_weights = {one for one in arguments if one.startswith("pretrained")}
        _refuse(f"{TIMM}:{name}", arguments, of_weights | {"checkpoint_path"})
        model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
        return model

    return make


def _transformers(name: str) -> Factory:
    transformers = _installed(TRANSFORMERS, name)
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    # timm_wrapper has timm download, and read, whatever its arguments name
    known = [one for one in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES if one != "timm_wrapper"]
    if name not in known:
        raise ConfigError(f"unknown transformers image classifier {name!r}: {did_you_mean(name, known)}")

    def make(**arguments: Any) -> nn.Module:
        # Without `architectures` those that have several classes for one name fail
        config = transformers.CONFIG_MAPPING[name].from_dict({"architectures": []} | arguments)
        model: nn.Module = transformers.AutoModelForImageClassification.from_config(
            config, dtype=torch.float32, trust_remote_code=False, **OWN_CODE
        )
        return select_output(model, "logits")

    return make


ZOOS: Mapping[str, Callable[[str], Factory]] = {
    TORCHVISION: _torchvision,
    TIMM: _timm,
    TRANSFORMERS: _transformers,
}
"""By what stands before the colon: what finds a factory, by its name in the zoo.

Each raises ConfigError where the zoo is not installed, or has no classifier of that name.
"""


def _installed(zoo: str, name: str) -> ModuleType:
    prepare_torchvision()  # which both import
    factory = f"{zoo}:{name}"
    try:
        with undone(f"classifier {factory!r}"):
            return importlib.import_module(zoo)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"classifier {factory!r} needs {error.name}, which is not installed: pip install {zoo}"
        ) from error
    except Exception as error:
        raise ConfigError(f"classifier {factory!r}: cannot import {zoo!r} ({one_line(error)})") from error


def _refuse(factory: str, arguments: Mapping[str, Any], downloads: set[str]) -> None:
    found = sorted(downloads & arguments.keys())
    if found:
        raise ConfigError(
            f"classifier {factory!r} does not take {found[0]!r}: weights come from a file, never from a hub"
        )


def as_named_now(weights: Mapping[str, Tensor], classifier: nn.Module) -> dict[str, Tensor]:
    """Weights as transformers saves them, by the names that its classifier has for them.

    Transformers has renamed parts of many models, and its files keep the first names.

    Args:
        weights: a state dict.
        classifier: whose weights they are to be.

    Returns:
        {name: tensor}; the weights as they are where the classifier is none of transformers'. A tensor of another
        shape than the classifier's is there by its shape alone, without values.
    """
    transformers = sys.modules.get(TRANSFORMERS)  # there, if the classifier is of its making
    if transformers is None or not isinstance(classifier, transformers.PreTrainedModel):
        return dict(weights)
    logs = transformers.utils.logging
    verbosity, bar = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity(logs.CRITICAL)  # what does not fit is told by whoever asks
    logs.disable_progress_bar()
    try:
        with undone("transformers"):
            loaded, report = type(classifier).from_pretrained(
                None,
                config=copy.deepcopy(classifier.config),
                state_dict=dict(weights),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **OWN_CODE,
            )
    finally:
        logs.set_verbosity(verbosity)
        if bar:
            logs.enable_progress_bar()
    return (
        {name: tensor for name, tensor in loaded.state_dict().items() if name not in report["missing_keys"]}
        | dict.fromkeys(report["unexpected_keys"], torch.empty(0))
        | {name: torch.empty(shape, device="meta") for name, shape, _ in report["mismatched_keys"]}
    )
