"""advertorch 0.2.3 on today's torch: put back `torch.autograd.gradcheck.zero_gradients` (gone since torch 1.9)."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType

import torch
import torch.autograd.gradcheck

from askance.classifiers.torchvision_compat import import_torchvision


def zero_gradients(x: torch.Tensor | Iterable[torch.Tensor]) -> None:
    """Set the gradients of a tensor, or of several, to zero: what torch 1.8 had under this name."""
    if isinstance(x, torch.Tensor):
        if x.grad is not None:
            x.grad.detach_()
            x.grad.zero_()
        return
    for element in x:
        zero_gradients(element)


def import_advertorch() -> ModuleType:
    """Import advertorch's attacks.

    Returns:
        The module `advertorch.attacks`.
    """
    # The module, not the attribute of the package: there the name is a function.
    gradcheck = sys.modules["torch.autograd.gradcheck"]
    if not hasattr(gradcheck, "zero_gradients"):
        gradcheck.zero_gradients = zero_gradients  # type: ignore[attr-defined]
    import_torchvision()  # advertorch imports torchvision's transforms
    import advertorch.attacks

    attacks: ModuleType = advertorch.attacks
    return attacks
