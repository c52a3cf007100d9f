"""Shared state: the settings of torch, numpy and Python that a process has once, kept from others' code."""

from __future__ import annotations

import gc
import locale
import logging
import os
import random
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile
from torch.nn.modules import module as nn_module

from askance.classifiers.replaced import attributes, put_back
from askance.errors import ConfigError, listed

logger = logging.getLogger(__name__)

Setting = tuple[Callable[[], Any], Callable[[Any], Any]]
"""What reads it, and what writes it."""


def _attribute(owner: object, name: str) -> Setting:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _flushes_denormals() -> bool:
    return float(torch.full((), 1e-40, dtype=torch.float32, device="cpu") * 1) == 0  # there is nobody to ask


def _set_default_device(device: torch.device) -> None:
    # None, where it is the CPU: naming it would put a mode of torch's in front of every call
    torch.set_default_device(None if device.type == "cpu" else device)


def _logger(logger: logging.Logger) -> Setting:
    def read() -> tuple[Any, ...]:
        return logger.level, logger.disabled, logger.propagate, logger.handlers[:], logger.filters[:]

    def write(found: tuple[Any, ...]) -> None:
        logger.setLevel(found[0])
        logger.disabled, logger.propagate, logger.handlers[:], logger.filters[:] = found[1:]

    return read, write


def _set_signals(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) != handler:  # None: not Python's own
            signal.signal(number, handler)


def _signals() -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():  # where nobody can set any
        return {}
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _hooks(registered: dict[int, Any]) -> Setting:
    def write(before: dict[int, Any]) -> None:
        registered.clear()
        registered.update(before)

    return lambda: dict(registered), write


def _umask() -> int:
    found = os.umask(0o077)  # which cannot be read without being set
    os.umask(found)
    return found


def _folder() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it has been removed
        return None


def _set_folder(before: Path | None) -> None:
    if before is not None:
        os.chdir(before)


SETTINGS: tuple[Setting, ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, _set_default_device),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    *((partial(torch.is_autocast_enabled, on), partial(torch.set_autocast_enabled, on)) for on in ("cpu", "cuda")),
    # Hooks on every module there is
    *(
        _hooks(found)
        for name, found in vars(nn_module).items()
        if name.startswith("_global_") and isinstance(found, dict)
    ),
    *(_attribute(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")),
    _attribute(torch.backends.cuda.matmul, "fp32_precision"),
    _attribute(torch.backends.cudnn.conv, "fp32_precision"),  # type: ignore[attr-defined]
    _attribute(torch.backends.mkldnn, "enabled"),
    (_flushes_denormals, torch.set_flush_denormal),
    (np.geterr, lambda before: np.seterr(**before)),
    # A truncated image is refused, and a large one, whatever a training script had to put up with
    _attribute(ImageFile, "LOAD_TRUNCATED_IMAGES"),
    _attribute(Image, "MAX_IMAGE_PIXELS"),
    (random.getstate, random.setstate),
    (gc.isenabled, lambda before: gc.enable() if before else gc.disable()),
    (gc.get_threshold, lambda before: gc.set_threshold(*before)),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (sys.getswitchinterval, sys.setswitchinterval),
    *(_attribute(sys, name) for name in ("stdin", "stdout", "stderr", "excepthook", "unraisablehook")),
    _attribute(threading, "excepthook"),
    (partial(locale.setlocale, locale.LC_ALL), partial(locale.setlocale, locale.LC_ALL)),
    (socket.getdefaulttimeout, socket.setdefaulttimeout),
    _logger(logging.getLogger()),
    _logger(logging.getLogger("askance")),
    _attribute(logging.root.manager, "disable"),
    (_signals, _set_signals),
    (_folder, _set_folder),
    (_umask, os.umask),
)


LASTING: Mapping[str, Callable[[], Any]] = {
    "torch's default type": torch.get_default_dtype,
    "torch's default device": torch.get_default_device,
    "torch's gradient mode": torch.is_grad_enabled,
    "torch's deterministic mode": torch.get_deterministic_debug_mode,
    "torch.backends.mkldnn.enabled": lambda: torch.backends.mkldnn.enabled,
    "numpy's errors": np.geterr,
    "ImageFile.LOAD_TRUNCATED_IMAGES": lambda: ImageFile.LOAD_TRUNCATED_IMAGES,
    "Image.MAX_IMAGE_PIXELS": lambda: Image.MAX_IMAGE_PIXELS,
    "logging.disable": lambda: logging.root.manager.disable,
    "signal handlers": _signals,
    "the working folder": _folder,
    "standard output": lambda: sys.stdout,
    "standard error": lambda: sys.stderr,
}
"""What of SETTINGS a classifier must not set each time that it answers, when nobody undoes it."""


@contextmanager
def left_alone(whose: str) -> Iterator[None]:
    """None of LASTING may be set in here, and no function of a library's replaced.

    Raises:
        ConfigError: one is.
    """
    before, functions = {name: read() for name, read in LASTING.items()}, attributes()
    yield
    for name, read in LASTING.items():
        if read() != before[name]:
            raise ConfigError(
                f"{whose} sets {name} while it answers, for all of the process: set it where the module is made, or "
                "back again"
            )
    if replaced := put_back(functions):
        raise ConfigError(
            f"{whose} puts functions of its own in place of {listed(replaced)} while it answers, for all of the "
            "process: give them names of their own, and call them by these"
        )


@contextmanager
def undone(whose: str) -> Iterator[None]:
    """Whatever the code in here sets of what it shares with us is as before when it ends; its warnings are its own.

    Functions that it has put in place of a library's are taken out again, too, and that is said: it may miss them.

    Args:
        whose: what a warning, or an error, calls the code.

    Raises:
        ConfigError: it has left torch in inference mode, which cannot be undone.
    """
    before, functions = [read() for read, _ in SETTINGS], attributes()
    generators = torch.get_rng_state(), np.random.get_state()
    inference = torch.is_inference_mode_enabled()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for (read, write), value in zip(SETTINGS, before, strict=True):
            if read() != value:
                write(value)
        torch.set_rng_state(generators[0])
        np.random.set_state(generators[1])
        replaced = put_back(functions)
    if replaced:
        logger.warning(
            "%s puts functions of its own in place of %s, for all of the process: they are taken out again; give them "
            "names of their own, and call them by these",
            whose,
            listed(replaced),
        )
    if torch.is_inference_mode_enabled() != inference:
        raise ConfigError(f"{whose} leaves torch in inference mode: enter it by `with torch.inference_mode():` only")


@contextmanager
def ordinary() -> Iterator[None]:
    """Torch and numpy as they are when a process starts, whatever the caller has set; the caller's again afterwards."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        dtype, device = torch.get_default_dtype(), torch.get_default_device()
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        if device.type != "cpu":
            stack.callback(torch.set_default_device, device)
            torch.set_default_device(None)
        yield
