"""Digests: names for what results depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def tensor_digest(*tensors: Tensor) -> str:
    """SHA-256 over shapes, types and values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors of a state dict, in the order of their names."""
    return tensor_digest(*(state[name] for name in sorted(state)))


def json_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 over JSON-ready content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def combined(*digests: str) -> str:
    """A short digest of several, for the name of a file."""
    return hashlib.sha256("/".join(digests).encode()).hexdigest()[:16]
