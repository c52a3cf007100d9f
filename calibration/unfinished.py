"""Unfinished: what is kept of a training after each epoch, so that one that was broken off can go on."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from askance.calibration.digests import json_digest
from askance.calibration.progress import say
from askance.calibration.stages import alone_in
from askance.errors import CalibrationError
from askance.writing import SECRET, write_whole

STATE = "state.pt"


class Unfinished:
    """A training on its way.

    Args:
        path: of the file.
        identity: of whatever it depends on.
        resume: go on with what is there.

    Attributes:
        state: of the last epoch that was finished, as `keep` was given it; None where it begins anew.

    Raises:
        CalibrationError: what is there is not to be gone on with, or is another one's.
    """

    def __init__(self, path: Path, identity: str, *, resume: bool) -> None:
        self._path, self._identity = path, identity
        self.state = self._found(resume=resume) if path.exists() else None

    def keep(self, state: Mapping[str, Any]) -> None:
        """Keep the state after an epoch: tensors, numbers, and dicts of them.

        Raises:
            FileError: it cannot be written.
        """
        content = io.BytesIO()
        torch.save({"identity": self._identity, "state": dict(state)}, content)
        write_whole(self._path, content.getvalue(), SECRET)

    def _found(self, *, resume: bool) -> dict[str, Any] | None:
        folder = self._path.parent
        if not resume:
            raise CalibrationError(
                f"{folder} holds unfinished work: add --resume to continue it, or remove it to start over"
            )
        try:
            kept: dict[str, Any] = torch.load(self._path, weights_only=True)
        except Exception:  # whatever torch says of a damaged file
            say(f"{self._path} is damaged: the training begins anew")
            return None
        if kept["identity"] != self._identity:
            raise CalibrationError(
                f"{folder} was begun with another classifier, data or options: remove it to start over"
            )
        state: dict[str, Any] = kept["state"]
        return state


@contextmanager
def unfinished(out: Path, identity: Mapping[str, Any], *, resume: bool) -> Iterator[Unfinished]:
    """Keep what is finished of a training beside what it is to write, `<out>.partial`, until the block ends well.

    Args:
        out: what is written in the end.
        identity: whatever the training depends on, JSON-ready.
        resume: go on with what is kept.

    Raises:
        CalibrationError: unfinished work is there that is not to be gone on with, or cannot; or another process has it.
        FileError: the folder cannot be written.
    """
    with alone_in(out.with_name(out.name + ".partial")) as folder:
        yield Unfinished(folder / STATE, json_digest(identity), resume=resume)
        shutil.rmtree(folder, ignore_errors=True)
