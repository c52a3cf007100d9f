"""Batcher: requests that wait at the same moment share one call of the classifier, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from detectors.screen import Observe, ScreenError, Screening
from service.status import StatusError, expired, failed, queue_full, unavailable
from service.telemetry import Telemetry

logger = logging.getLogger(__name__)

ScreenCall = Callable[[Tensor, Sequence[bool], Observe], "list[Screening | ScreenError]"]
Outcome = Screening | StatusError


@dataclass(eq=False)
class _Item:
    image: Tensor
    explain: bool
    deadline: float | None  # of the clock
    queued: float = field(default_factory=time.perf_counter)
    future: asyncio.Future[Screening] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Place:
    """A place in the queue, held from a request's arrival until the classifier takes it or the request is over."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._held = True

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()

    def free(self) -> None:
        """Give the place back; more than once does no harm."""
        if self._held:
            self._held = False
            self._batcher.held -= 1

    async def screen(self, image: Tensor, explain: bool = False, deadline: float | None = None) -> Screening:
        """Screen one image, [C, H, W] float32 in [0, 1].

        Args:
            image: of the classifier's shape; already validated.
            explain: whether the detectors explain themselves.
            deadline: on `time.monotonic`'s clock; past it the image is not screened.

        Raises:
            StatusError: DEADLINE_EXCEEDED before the classifier saw it; INTERNAL when it failed on this image.
        """
        return await self._batcher.enqueue(_Item(image, explain, deadline), self)


class Batcher:
    """A bounded queue in front of one inference thread.

    There is no batching delay: whenever the thread is free it takes what waits, up to `max_batch`. Requests that were
    cancelled or whose deadline has passed are dropped before the classifier sees them. If a call fails, its images are
    tried again one by one, so that a bad image fails alone.

    Args:
        screen: `Screen.__call__`, in short.
        executor: its one thread.
        max_batch: the most images in a call.
        queue_size: the most places.
        telemetry: gets batch sizes, stages and drops.
    """

    def __init__(
        self, screen: ScreenCall, executor: Executor, max_batch: int, queue_size: int, telemetry: Telemetry
    ) -> None:
        self._screen = screen
        self._executor = executor
        self._max_batch = max_batch
        self._queue_size = queue_size
        self._telemetry = telemetry
        self._waiting: dict[_Item, Place] = {}  # in order of arrival
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._busy_since: float | None = None
        self.held = 0
        """How many places are taken: requests accepted and not yet with the classifier."""

    def start(self) -> None:
        """Begin to take what waits; call it on the event loop."""
        self._worker = asyncio.create_task(self._work(), name="askance-batcher")

    async def stop(self) -> None:
        """Answer what still waits UNAVAILABLE, finish the call under way, then stop."""
        for item in self._waiting:
            if not item.future.done():
                item.future.set_exception(unavailable("draining"))
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
            self._worker = None

    def busy_seconds(self) -> float:
        """How long the inference thread has been at its present batch."""
        return 0.0 if self._busy_since is None else time.monotonic() - self._busy_since

    def place(self) -> Place:
        """Take a place in the queue.

        Raises:
            StatusError: RESOURCE_EXHAUSTED when all are taken.
        """
        if self.held >= self._queue_size:
            raise queue_full(self._queue_size)
        self.held += 1
        return Place(self)

    async def enqueue(self, item: _Item, place: Place) -> Screening:
        """Wait for the item's outcome; see `Place.screen`."""
        self._waiting[item] = place
        self._arrived.set()
        try:
            return await item.future
        except asyncio.CancelledError:
            if item in self._waiting:
                self._telemetry.dropped(item.deadline)
            raise
        finally:
            self._waiting.pop(item, None)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            batch = self._take()
            if not batch:
                continue
            self._telemetry.batch(len(batch))
            call = loop.run_in_executor(self._executor, self._run, batch)
            self._busy_since = time.monotonic()
            try:
                outcomes = await asyncio.shield(call)
            except asyncio.CancelledError:  # stopping: the thread cannot be interrupted
                outcomes = await call
                _settle(batch, outcomes)
                raise
            finally:
                self._busy_since = None
            _settle(batch, outcomes)

    def _take(self) -> list[_Item]:
        """The next live items, at most `max_batch`; their places are free again."""
        batch: list[_Item] = []
        now, monotonic = time.perf_counter(), time.monotonic()
        while self._waiting and len(batch) < self._max_batch:
            item = next(iter(self._waiting))
            self._waiting.pop(item).free()
            if item.future.done():
                self._telemetry.dropped(item.deadline)
                continue
            if item.deadline is not None and item.deadline <= monotonic:
                item.future.set_exception(expired())
                continue
            self._telemetry.stage("queue", now - item.queued)
            batch.append(item)
        if not self._waiting:
            self._arrived.clear()
        return batch

    def _run(self, batch: list[_Item]) -> list[Outcome]:
        """Screen a batch on the inference thread; never raises."""
        try:
            results = self._screen(
                torch.stack([item.image for item in batch]), [item.explain for item in batch], self._telemetry.stage
            )
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} images")
        except Exception as error:
            if len(batch) > 1:
                logger.warning("a batch of %d failed, trying its images one by one: %r", len(batch), error)
                return [outcome for item in batch for outcome in self._run([item])]
            logger.exception("an image could not be screened")
            return [failed(error)]
        return [self._outcome(result) for result in results]

    @staticmethod
    def _outcome(result: Screening | ScreenError) -> Outcome:
        if isinstance(result, ScreenError):
            # The input was valid, finite and in range: it is the classifier or a detector that does not hold.
            logger.warning("an image could not be screened: %s", result)
            return failed(result)
        return result


def _settle(batch: list[_Item], outcomes: list[Outcome]) -> None:
    for item, outcome in zip(batch, outcomes, strict=True):
        if item.future.done():  # given up meanwhile
            continue
        if isinstance(outcome, StatusError):
            item.future.set_exception(outcome)
        else:
            item.future.set_result(outcome)
