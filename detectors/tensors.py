"""Tensors: as safetensors wants them, and in words, so that others in their place are noticed before they are used."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory, as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def described(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What tensors are, by name: "float32 [2, 3] finite", "int64 [5] 0 to 9".

    Whether numbers are finite, and which integers there are, counts: an altered position or class among them leads out
    of another tensor, and then an image fails, with its batch mates, long after the bundle was opened.
    """
    return {name: _described(tensor) for name, tensor in sorted(tensors.items())}


def _described(tensor: Tensor) -> str:
    words = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
    if tensor.is_floating_point():
        return f"{words} finite" if bool(torch.isfinite(tensor.float()).all()) else words
    if tensor.is_complex() or tensor.dtype is torch.bool or tensor.numel() == 0:
        return words
    return f"{words} {int(tensor.min())} to {int(tensor.max())}"
