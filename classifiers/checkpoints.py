"""Checkpoints: the state dict in a file, however its saver has wrapped it, without ever running a pickle."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from askance.classifiers.zoos import as_named_now
from askance.errors import ConfigError, listed, one_line

SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar", ".bin", ".ckpt")
NAMES = ("state_dict", "model_state_dict", "model", "net", "network", "module")  # the first of them is meant
WRAPPERS = ("module", "_orig_mod")  # what DataParallel and torch.compile put in names, wherever they wrapped a part
COUNTER = "n_averaged"  # of torch's own AveragedModel, beside the weights
DEEPEST = 3  # mappings around a state dict


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file; no pickled code is ever run.

    Args:
        path: `.safetensors`; or `.pt`, `.pth`, `.pth.tar`, `.bin` or `.ckpt` of torch.save, with a state dict or with
            mappings around one: {"model": a state dict, "optimizer": ..., "epoch": 3}. Of several the one called
            "state_dict", "model_state_dict", "model", "net", "network" or "module" is meant, the first there is.

    Returns:
        {name: tensor}, on the CPU.

    Raises:
        ConfigError: there is no such file, it is corrupt, of another kind, or holds more than tensors.
    """
    if not path.name.endswith(SUFFIXES):
        raise ConfigError(f"weights {path}: expected a file whose name ends in one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ConfigError(f"weights {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # of what is refused below, in a line of ours
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ConfigError(f"weights {path}: not a safetensors file, or a damaged one ({one_line(error)})") from error
    except OSError as error:
        raise ConfigError(f"weights {path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # what a hostile or damaged pickle raises is not documented
        raise ConfigError(
            f"weights {path}: {_refusal(str(error))}: where it was made, save model.state_dict() instead: "
            "torch.save(model.state_dict(), 'weights.pt')"
        ) from error
    return {name: tensor.detach() for name, tensor in _state_dict(content, path).items()}


def fitting(weights: Mapping[str, Tensor], classifier: nn.Module) -> dict[str, Tensor]:
    """The weights by the names, and in the types, that a classifier has for them.

    A part that every name begins with ("model.", "net."), or several in a row, is taken off where not all fit with it;
    where that does not help, the parts that wrappers put in the middle of names, and AveragedModel's counter. Names
    that transformers has for its files are those of its modules.

    Args:
        weights: a state dict.
        classifier: whose they are to be.

    Returns:
        {name: tensor}; the weights as they are where nothing helps.

    Raises:
        ConfigError: there are integers, or complex or quantised numbers, in place of floats, or the other way round.
    """
    own = classifier.state_dict()
    named = _bare(weights, own) or as_named_now(weights, classifier)
    for name, tensor in named.items():
        if isinstance(own.get(name), Tensor) and not _becomes(tensor, own[name]):
            before = "" if tensor.is_floating_point() else ": save the weights before they are quantised"
            raise ConfigError(f"the weights hold {name!r} as {tensor.dtype}, expected {own[name].dtype}{before}")
    return {
        name: tensor.to(own[name].dtype) if isinstance(own.get(name), Tensor) else tensor
        for name, tensor in named.items()
    }


def _bare(weights: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The weights by names of `own`, with what wrappers have put there taken off; None where that does not help."""
    without = {name: tensor for name, tensor in weights.items() if name != COUNTER}
    for these in (weights, without):
        for names in (list(these), [_unwrapped(name) for name in these]):
            fit = _fit(names, own)
            if fit is not None:
                return dict(zip(fit, these.values(), strict=True))
    return None


def _fit(names: list[str], own: Mapping[str, Any]) -> list[str] | None:
    while names and not own.keys() >= set(names) and (prefix := _shared(names)):
        names = [name.removeprefix(prefix) for name in names]
    return names if own.keys() >= set(names) and len(set(names)) == len(names) else None


def _shared(names: list[str]) -> str:
    """The first part of all names, with its dot; empty where they do not begin alike."""
    first, dot, _ = names[0].partition(".")
    return first + dot if dot and all(name.startswith(first + dot) for name in names) else ""


def _unwrapped(name: str) -> str:
    first, *others = name.split(".")
    return ".".join([first, *(part for part in others if part not in WRAPPERS)])


def _becomes(tensor: Tensor, own: Tensor) -> bool:
    """Whether a tensor's values are another precision of those wanted: quantised integers are not, nor complex ones."""
    kinds = [(one.is_floating_point(), one.is_complex(), one.is_quantized) for one in (tensor, own)]
    return kinds[0] == kinds[1]


def _refusal(error: str) -> str:
    if "TorchScript" in error:
        return "a TorchScript archive, which is code and never run"
    wanted = re.search(r"GLOBAL (\w+(\.\w+)+)", error)
    what = f" (it wants {wanted[1]})" if wanted else ""
    return f"damaged, or more than plain tensors{what}, which is never unpickled"


def _state_dict(content: Any, path: Path) -> Mapping[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(f"weights {path}: expected a state dict, got {type(content).__name__}")
    found = sorted(_state_dicts(content), key=lambda one: _rank(one[0]))
    if not found:
        wrong = ((name, value) for name, value in content.items() if not isinstance(value, Tensor))
        name, value = next(wrong, next(iter(content.items())))
        raise ConfigError(
            f"weights {path}: expected a state dict, but {name!r} holds {type(value).__name__}, not a tensor"
        )
    tied = [".".join(place) for place, _ in found if _rank(place) == _rank(found[0][0])]
    if len(tied) > 1:
        raise ConfigError(
            f"weights {path}: expected one state dict, got {len(tied)}: {listed(tied)}; save the one meant by itself"
        )
    return found[0][1]


def _state_dicts(
    content: Mapping[Any, Any], place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Tensor]]]:
    """Every mapping of nothing but names to tensors, with where it is; not an optimizer's."""
    if content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        yield place, content
    elif len(place) < DEEPEST:
        for name, value in content.items():
            if isinstance(value, Mapping) and isinstance(name, str) and not name.startswith("optim"):
                yield from _state_dicts(value, (*place, name))


def _rank(place: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(NAMES.index(name) if name in NAMES else len(NAMES) for name in place)
