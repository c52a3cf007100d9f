"""Tensors: as safetensors wants them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory, as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
