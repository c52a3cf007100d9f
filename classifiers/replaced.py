"""Replaced: functions of the libraries that we share, in whose place others' code has put its own."""

from __future__ import annotations

import builtins
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import nn

Attributes = dict[tuple[Any, str], Any]
"""By owner and name."""

_MODULES = (
    *(torch, torch.autograd, torch.fft, torch.linalg, torch.special, nn, nn.functional, nn.init, torch.utils.data),
    *(np, np.linalg, np.random, Image, ImageFile),
    *(builtins, json, os, socket, threading, time),
)
_CLASSES = (torch.Tensor, Image.Image, *(one for one in vars(nn).values() if isinstance(one, type)))


def attributes() -> Attributes:
    """What stands under each name of the libraries' modules and classes now."""
    return {(owner, name): value for owner in (*_MODULES, *_CLASSES) for name, value in vars(owner).items()}


def put_back(before: Attributes) -> list[str]:
    """Put back what others' code has put something callable in the place of since, or in front of, in a class.

    What a library wraps in code of its own, as torch does when it loads a part of itself, stays.

    Args:
        before: from `attributes`.

    Returns:
        The full names of what was replaced.
    """
    known, found = {id(value) for value in before.values()}, []
    for (owner, name), other in attributes().items():
        value = before.get((owner, name), None if isinstance(owner, ModuleType) else _inherited(owner, name))
        if other is value or not callable(value) or not callable(other):
            continue
        whole = owner.__name__ if isinstance(owner, ModuleType) else f"{owner.__module__}.{owner.__qualname__}"
        if _package(other) == whole.partition(".")[0] and id(other) not in known:
            continue
        if (owner, name) in before:
            setattr(owner, name, value)
        else:
            delattr(owner, name)
        found.append(f"{whole}.{name}")
    return found


def _inherited(owner: type, name: str) -> Any:
    """What a class has of its bases by a name; None where they have nothing."""
    return next((vars(base)[name] for base in owner.__mro__[1:] if name in vars(base)), None)


def _package(value: Callable[..., Any]) -> str:
    """Of the code behind it: functools.wraps copies everything else of what is wrapped."""
    names: dict[str, Any] = getattr(value, "__globals__", {})
    module = names.get("__name__") or getattr(value, "__module__", None) or type(value).__module__
    return str(module).partition(".")[0]
