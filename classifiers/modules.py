"""Modules as people hand them over: out of their wrappers, copied, in eval mode."""

from __future__ import annotations

import copy

from torch import nn

from askance.errors import ConfigError, one_line


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, DataParallel and DistributedDataParallel; its layers have their own names."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner: object = module.module
        elif type(module).__name__ == "OptimizedModule":  # whose class is not worth the import of the compiler
            inner = getattr(module, "_orig_mod", None)
        else:
            return module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def in_eval_mode(module: nn.Module) -> nn.Module:
    """The same module, whatever its own `train` and `eval` return.

    Raises:
        ConfigError: it cannot be brought there, as what `torch.export` made.
    """
    try:
        module.eval()
    except Exception as error:
        raise ConfigError(
            f"the classifier cannot be put in eval mode ({one_line(error)}): give the nn.Module that it was made of"
        ) from error
    return module


def copy_of(module: nn.Module) -> nn.Module:
    """An unwrapped copy in eval mode; the caller's stays as it is.

    Raises:
        ConfigError: it is no module, or cannot be copied.
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(f"the classifier is {type(module).__name__}, expected a torch.nn.Module")
    try:
        copied = copy.deepcopy(unwrapped(module))
    except Exception as error:
        raise ConfigError(
            f"the classifier cannot be copied ({one_line(error)}): let go of what it keeps of earlier images, and of "
            "files, locks and threads"
        ) from error
    return in_eval_mode(copied)
