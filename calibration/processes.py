"""Processes: pieces of long work, done here or spread over the cores."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

import torch

from askance.calibration.progress import say, track
from askance.errors import CalibrationError

WORTH_PROCESSES_SECONDS = 20.0  # of work left, that pay for starting processes
PlaceT = TypeVar("PlaceT")


class Worker(Protocol):
    """Does pieces of work, wherever it is sent: it can be pickled."""

    @property
    def here_only(self) -> bool:
        """Whether it cannot be sent anywhere after all."""

    def begin(self) -> Callable[..., Any]:
        """Make ready; what takes a piece's arguments, and gives what can be pickled."""


def spread(worker: Worker, pieces: Mapping[PlaceT, tuple[Any, ...]], what: str) -> Iterator[tuple[PlaceT, Any]]:
    """Do the pieces here, or, when there is enough left to do after a while, in a process per core.

    Args:
        worker: what does them.
        pieces: the arguments of each: numpy's arrays rather than tensors, which would travel through shared memory that
            may be small.
        what: they are, for the progress bar.

    Returns:
        (its place, what came of it), of each as it is done.

    Raises:
        CalibrationError: a process was ended.
    """
    waiting = dict(pieces)
    if not waiting:
        return
    do, total, begun = worker.begin(), len(waiting), time.perf_counter()
    for place, piece in pieces.items():
        yield place, do(*piece)
        del waiting[place]
        spent = time.perf_counter() - begun
        if not worker.here_only and spent / (total - len(waiting)) * len(waiting) > WORTH_PROCESSES_SECONDS:
            break
    if waiting:
        yield from _in_processes(worker, waiting, what)


def _in_processes(worker: Worker, pieces: Mapping[PlaceT, tuple[Any, ...]], what: str) -> Iterator[tuple[PlaceT, Any]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    say(f"{what}: {len(pieces)} pieces over {cores} processes")
    # spawned, not forked: torch's threads do not survive a fork
    with ProcessPoolExecutor(
        cores, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(worker,)
    ) as pool:
        futures = {pool.submit(_do, *piece): place for place, piece in pieces.items()}
        try:
            for future in track(_Completed(futures), what):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise CalibrationError(
                "a process that makes attacked images was ended: memory ran out, or the script that calibrates has no "
                'if __name__ == "__main__": around what it does, which processes then do again; what is made is cached'
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Completed:
    """Futures as they complete, with a length for the progress bar."""

    def __init__(self, futures: Mapping[Any, Any]) -> None:
        self._futures = futures

    def __len__(self) -> int:
        return len(self._futures)

    def __iter__(self) -> Iterator[Any]:
        return as_completed(self._futures)


_work: Callable[..., Any] | None = None


def _begin(worker: Worker) -> None:
    global _work  # noqa: PLW0603 (a process has one)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _work = worker.begin()


def _end_with_parent() -> None:
    """A pool's processes wait for work for ever, also where whoever had it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(*piece: Any) -> Any:
    assert _work is not None
    return _work(*piece)
