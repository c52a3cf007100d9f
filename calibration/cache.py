"""The cache of attacked images: kept by the hash of all that they depend on, so that no run makes them twice."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from askance.calibration.files import write_atomically


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
