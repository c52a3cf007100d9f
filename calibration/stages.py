"""Stages: pieces of long work whose results are kept on disk, so that a killed calibration goes on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from askance.calibration.digests import json_digest
from askance.calibration.progress import say
from askance.detectors.tensors import contiguous
from askance.errors import CalibrationError
from askance.writing import SECRET, write_whole, writing


@contextmanager
def alone_in(folder: Path) -> Iterator[Path]:
    """Work in a folder, made if need be, that no other process works in; a process that dies lets go of it.

    Raises:
        CalibrationError: another one does.
        FileError: the folder cannot be written.
    """
    lock = FileLock(folder / "lock")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise CalibrationError(
                f"another calibration is at work in {folder}: wait until it has ended, or choose another path"
            ) from None
    try:
        yield folder
    finally:
        lock.release()


class Stages:
    """The finished stages of one calibration, in a folder beside the bundle to be.

    Args:
        folder: where results are kept; held by `alone_in`.
        identity: everything the results depend on, JSON-ready; a folder made for another identity is refused.
        resume: continue with what is there; without it a folder that holds work is refused, never overwritten.

    Raises:
        CalibrationError: the folder holds work and `resume` is off, or the work of another calibration.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, resume: bool) -> None:
        self.folder = folder
        digest = json_digest(identity)
        marker = folder / "identity"
        if any(folder.glob("*.safetensors")):  # a run that failed before it had finished anything leaves no work
            if not resume:
                raise CalibrationError(
                    f"{folder} holds unfinished work: add --resume to continue it, or remove it to start over"
                )
            if not marker.exists() or marker.read_text() != digest:
                raise CalibrationError(
                    f"{folder} was begun with another classifier, data or words: remove it to start over"
                )
        write_whole(marker, digest.encode(), SECRET)

    def run(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the stage's tensors: those kept from before, or those `make` gives now, kept before returning."""
        path = self.folder / f"{name}.safetensors"
        if path.exists():
            try:
                kept = load_safetensors(path.read_bytes())
                say(f"{name}: kept from before")
                return kept
            except SafetensorError:
                say(f"{name}: the kept result is damaged, made anew")
        tensors = contiguous(make())
        write_whole(path, save_safetensors(tensors), SECRET)
        return tensors

    def remove(self) -> None:
        """Delete the folder: the bundle is published."""
        shutil.rmtree(self.folder, ignore_errors=True)
