"""The cache of attacked images: kept by the hash of all that they depend on, so that no run makes them twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from calibration.training import write_atomically


def tensor_digest(*tensors: Tensor) -> str:
    """SHA-256 over shapes, types and values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def combined(*digests: str) -> str:
    """A short digest of several, for the name of a file."""
    return hashlib.sha256("/".join(digests).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """ASKANCE_CACHE, or the user's own cache folder; it can be removed at any time."""
    named = os.environ.get("ASKANCE_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else home / "askance"


def attack_cache() -> ImageCache:
    """The cache of attacked images in the user's cache folder."""
    return ImageCache(cache_folder() / "attacks")


class ImageCache:
    """Tensors by key, one file each; a damaged file counts as absent.

    Args:
        folder: where they are kept; made when the first one is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def key(content: Mapping[str, Any]) -> str:
        """The key of JSON-ready content that says everything the images depend on."""
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> Tensor | None:
        """The images kept under `key`, or None."""
        try:
            return load_safetensors(self._path(key).read_bytes())["pixels"]
        except (OSError, SafetensorError, KeyError):
            return None

    def put(self, key: str, pixels: Tensor) -> None:
        """Keep images under `key`; whole or not at all."""
        write_atomically(self._path(key), save_safetensors({"pixels": pixels.contiguous()}))
