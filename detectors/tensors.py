"""Tensors: as safetensors wants them, what draws them, and what gradients do not get through by themselves."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import torch
from torch import Tensor


def generator(seed: int | None) -> torch.Generator:
    """What draws at random by a seed; None: by one of the operating system's, which is kept nowhere."""
    return torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed)


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory, as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def straight_through(found: Tensor, values: Tensor) -> Tensor:
    """What was found of values of the same shape; a gradient goes on to the values as if it had been these.

    Y. Bengio et al., "Estimating or propagating gradients through stochastic neurons" (2013); as an attack on what has
    no gradient: A. Athalye et al., "Obfuscated gradients give a false sense of security" (2018).
    """
    return found + (values - values.detach()) if values.requires_grad else found


def rounded(values: Tensor, decimals: int = 0) -> Tensor:
    """Rounded; gradients go straight through, for rounding itself has none but 0."""
    return straight_through(values.detach().round(decimals=decimals), values)
