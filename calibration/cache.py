"""The cache of attacked images: kept by the hash of all that they depend on, so that no run makes them twice."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from askance.calibration.progress import say
from askance.errors import FileError
from askance.writing import SECRET, write_whole


def cache_folder() -> Path:
    """ASKANCE_CACHE, or the user's own cache folder; it can be removed at any time.

    Raises:
        FileError: the user has no home, and nothing names another place.
    """
    if named := os.environ.get("ASKANCE_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "askance"
    except RuntimeError:
        raise FileError("there is no home to keep a cache in: let ASKANCE_CACHE name a folder") from None


def attack_cache() -> ImageCache:
    """The cache of attacked images in the user's cache folder; one that keeps nothing where there is none."""
    try:
        return ImageCache(cache_folder() / "attacks")
    except FileError as error:
        return ImageCache(None, str(error))


class ImageCache:
    """Tensors by key, one file each; a damaged file counts as absent.

    Once a file cannot be written it says so, and keeps no more: the work goes on without.

    Args:
        folder: where they are kept; made when the first one is. None keeps nothing.
        reason: why it does not.
    """

    def __init__(self, folder: Path | None, reason: str = "") -> None:
        self.folder = folder
        self._reason = reason

    def _path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> Tensor | None:
        """The images kept under `key`, or None."""
        path = self._path(key)
        try:
            return None if path is None else load_safetensors(path.read_bytes())["pixels"]
        except (OSError, SafetensorError, KeyError):
            return None

    def put(self, key: str, pixels: Tensor) -> None:
        """Keep images under `key`; whole or not at all."""
        path = self._path(key)
        if path is not None:
            try:
                write_whole(path, save_safetensors({"pixels": pixels.contiguous()}), SECRET)
            except FileError as error:
                self.folder, self._reason = None, str(error)
        if self._reason:
            say(f"attacked images are not kept for another run: {self._reason}")
            self._reason = ""
