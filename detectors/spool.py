"""Spool: the features of a whole stream, kept in an unnamed file on disk instead of in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from askance.detectors.tap import EMPTY_STREAM, Capture
from askance.errors import DataError
from askance.writing import OTHER_TEMPORARY, writing


def spool(stream: Iterable[Capture], *features: Callable[[Capture], Tensor]) -> list[Tensor]:
    """Collect features of every Capture; training can then revisit them in any order at the price of a disk read.

    Args:
        stream: Captures, walked once.
        features: each maps a Capture to a floating-point or integer tensor [B, ...] of fixed trailing shape.

    Returns:
        One tensor [N, ...] per feature, backed by a temporary file without a name (gone with the tensor).

    Raises:
        DataError: the stream is empty.
        FileError: there is no room for them.
    """
    with _spooling():
        files = [tempfile.TemporaryFile() for _ in features]  # noqa: SIM115
    shapes: list[tuple[int, ...]] = []
    dtypes: list[np.dtype[Any]] = []
    count = 0
    for capture in stream:
        arrays = [feature(capture).detach().cpu().contiguous().numpy() for feature in features]
        if not shapes:
            shapes, dtypes = [a.shape[1:] for a in arrays], [a.dtype for a in arrays]
        with _spooling():
            for file, array in zip(files, arrays, strict=True):
                file.write(array.tobytes())
        count += len(capture)
    if count == 0:
        raise DataError(EMPTY_STREAM)
    tensors = []
    for file, shape, dtype in zip(files, shapes, dtypes, strict=True):
        with _spooling():
            file.flush()
        tensors.append(torch.from_numpy(np.memmap(file, dtype=dtype, mode="r+", shape=(count, *shape))))
        file.close()  # the map holds the file open
    return tensors


def _spooling() -> AbstractContextManager[None]:
    return writing("a temporary file for what training revisits", OTHER_TEMPORARY)
