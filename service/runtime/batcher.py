"""Batcher: requests that wait at the same moment share one call of the classifier, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
from opentelemetry.trace import Span

from askance.answers import Answer
from askance.errors import ScreenError
from askance.screening.images import Pixels
from askance.screening.reading import Observe
from askance.service.errors import StatusError, expired, failed, queue_full, too_late, unavailable
from askance.service.observability.metrics import Metrics
from askance.service.observability.tracing import Stage, add_stages, current_span

logger = logging.getLogger(__name__)

ScreenCall = Callable[[Pixels, Sequence[bool], Observe], "list[Answer | ScreenError]"]
ClassifyCall = Callable[[Pixels], "list[Answer | ScreenError]"]
Outcome = Answer | StatusError


@dataclass(eq=False)
class _Item:
    image: Pixels
    explain: bool
    deadline: float | None  # of the clock
    hurried: bool = False  # its deadline is too near for the detectors
    queued: int = field(default_factory=time.perf_counter_ns)
    span: Span = field(default_factory=current_span)
    future: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Slot:
    """A slot of the queue, held from a request's arrival until the classifier takes it or the request is over."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._held = True

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()

    def free(self) -> None:
        """Give the slot back; more than once does no harm."""
        if self._held:
            self._held = False
            self._batcher.held -= 1

    async def screen(self, image: Pixels, explain: bool = False, deadline: float | None = None) -> Answer:
        """Screen one image, [C, H, W] float32 in [0, 1].

        Args:
            image: of the classifier's shape; already validated.
            explain: whether the detectors explain themselves.
            deadline: on `time.monotonic`'s clock; past it the image is not screened.

        Returns:
            Its Answer; UNSCREENED where the batcher has a fallback and the detectors could not have their say.

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
        queue_size: the most slots.
        metrics: gets batch sizes, stages and drops.
        fallback: `Screen.classify`, for images that the detectors fail on or have no time for (fail-open); None answers
            those with an error (fail-closed).
        reserve: seconds before its deadline that an image must reach the classifier to be screened.
    """

    def __init__(
        self,
        screen: ScreenCall,
        executor: Executor,
        max_batch: int,
        queue_size: int,
        metrics: Metrics,
        fallback: ClassifyCall | None = None,
        reserve: float = 0.0,
    ) -> None:
        self._screen = screen
        self._fallback = fallback
        self._reserve = reserve
        self._executor = executor
        self._max_batch = max_batch
        self._queue_size = queue_size
        self._metrics = metrics
        self._waiting: dict[_Item, Slot] = {}  # in order of arrival
        self._loop: asyncio.AbstractEventLoop | None = None  # until it is started, and once it is stopped, none
        self._is_due = False  # the next batch, in this turn of the loop
        self._over: asyncio.Future[None] | None = None  # of the call under way
        self._busy_since: float | None = None
        self.held = 0
        """How many slots are taken: requests accepted and not yet with the classifier."""

    def start(self) -> None:
        """Begin to take what waits; call it on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._arrived()

    async def stop(self) -> None:
        """Answer what still waits UNAVAILABLE, finish the call under way, then stop."""
        self._loop = None
        for item in self._waiting:
            if not item.future.done():
                item.future.set_exception(unavailable("draining"))
        if self._over is not None:  # the thread cannot be interrupted
            await self._over

    def busy_seconds(self) -> float:
        """How long the inference thread has been at its present batch."""
        return 0.0 if self._busy_since is None else time.monotonic() - self._busy_since

    def full(self) -> StatusError | None:
        """RESOURCE_EXHAUSTED while all slots are taken, else None."""
        return queue_full(self._queue_size) if self.held >= self._queue_size else None

    def slot(self) -> Slot:
        """Take a slot of the queue.

        Raises:
            StatusError: RESOURCE_EXHAUSTED when all are taken.
        """
        error = self.full()
        if error is not None:
            raise error
        self.held += 1
        return Slot(self)

    async def enqueue(self, item: _Item, slot: Slot) -> Answer:
        """Wait for the item's outcome; see `Slot.screen`."""
        self._waiting[item] = slot
        self._arrived()
        try:
            return await item.future
        except asyncio.CancelledError:
            if item in self._waiting:
                self._metrics.dropped(item.deadline)
            raise
        finally:
            self._waiting.pop(item, None)

    def _arrived(self) -> None:
        """Take what waits once all that arrives in this turn of the loop is there, if the thread is free."""
        if self._loop is not None and self._over is None and not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        """Give the thread what waits, if anything does."""
        self._is_due = False
        if self._loop is None or self._over is not None or not (batch := self._take()):
            return
        self._metrics.batch(len(batch))
        self._over, self._busy_since = self._loop.create_future(), time.monotonic()
        self._executor.submit(self._run, batch, self._loop)

    def _end(self, batch: list[_Item], outcomes: list[Outcome]) -> None:
        """The call is over. The thread gets the next one first: it need not wait until these answers are sent."""
        assert self._over is not None
        self._over.set_result(None)
        self._over = self._busy_since = None
        self._begin()
        _settle(batch, outcomes)

    def _take(self) -> list[_Item]:
        """The next live items, at most `max_batch`; their slots are free again."""
        batch: list[_Item] = []
        now, monotonic = time.perf_counter_ns(), time.monotonic()
        while self._waiting and len(batch) < self._max_batch:
            item = next(iter(self._waiting))
            self._waiting.pop(item).free()
            if item.future.done():
                self._metrics.dropped(item.deadline)
                continue
            if item.deadline is not None and item.deadline <= monotonic:
                item.future.set_exception(expired())
                continue
            if item.deadline is not None and item.deadline - self._reserve <= monotonic:
                self._metrics.unscreened("deadline")
                if self._fallback is None:
                    item.future.set_exception(too_late(self._reserve))
                    continue
                item.hurried = True
            self._metrics.stage("queue", (now - item.queued) / 1e9)
            add_stages(item.span, [("queue", item.queued, now)])
            batch.append(item)
        return batch

    def _run(self, batch: list[_Item], loop: asyncio.AbstractEventLoop) -> None:
        """Answer a batch, on the inference thread; those in a hurry first. Never raises."""
        hurried, others = [i for i in batch if i.hurried], [i for i in batch if not i.hurried]
        try:
            if hurried:
                loop.call_soon_threadsafe(_settle, hurried, self._classified(hurried))
            outcomes = self._screened(others) if others else []
        except BaseException as error:  # a classifier's code that would end the process: this call, and no more
            logger.critical("images could not be screened", exc_info=error)
            others, outcomes = batch, [failed(error)] * len(batch)
        loop.call_soon_threadsafe(self._end, others, outcomes)

    def _screened(self, batch: list[_Item]) -> list[Outcome]:
        """What the classifier and the detectors say; each image by itself where all of them together fail."""
        stages: list[Stage] = []

        def observe(name: str, seconds: float) -> None:
            self._metrics.stage(name, seconds)
            end = time.perf_counter_ns()
            stages.append((name, end - round(seconds * 1e9), end))

        try:
            results = self._screen(np.stack([item.image for item in batch]), [item.explain for item in batch], observe)
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} images")
        except Exception as error:
            failure = error
        else:
            for item in batch:
                add_stages(item.span, stages)
            return [
                self._without_detectors(item, result) if isinstance(result, ScreenError) else result
                for item, result in zip(batch, results, strict=True)
            ]
        try:
            if len(batch) == 1:
                return [self._without_detectors(batch[0], failure)]
            # by its type alone: whichever image it was says the rest
            logger.warning(
                "a batch of %d failed (%s), trying its images one by one", len(batch), type(failure).__name__
            )
        finally:
            del failure  # it holds this frame, and with it the batch
        return [outcome for item in batch for outcome in self._screened([item])]

    def _without_detectors(self, item: _Item, error: Exception) -> Outcome:
        """What becomes of an image that could not be screened.

        The input was valid, finite and in range: it is the classifier or a detector that does not hold.
        """
        if isinstance(error, ScreenError):
            logger.error("an image could not be screened: %s", error)
        else:
            logger.error("an image could not be screened", exc_info=error)  # which ends with what went wrong
        self._metrics.unscreened("failure")
        if self._fallback is None:
            return failed(error)
        (outcome,) = self._classified([item], error)
        return outcome

    def _classified(self, batch: list[_Item], logged: Exception | None = None) -> list[Outcome]:
        """What the classifier alone says; each image by itself where all of them together fail.

        What went wrong before, and is in the log, is not logged again.
        """
        assert self._fallback is not None
        try:
            with self._metrics.timed("classify"):
                results = self._fallback(np.stack([item.image for item in batch]))
        except Exception as error:
            failure = error
        else:
            return [failed(result) if isinstance(result, ScreenError) else result for result in results]
        try:
            if len(batch) == 1:
                if repr(failure) != repr(logged):
                    logger.error("an image could not be classified", exc_info=failure)
                return [failed(failure)]
        finally:
            del failure
        return [outcome for item in batch for outcome in self._classified([item])]


def _settle(batch: list[_Item], outcomes: list[Outcome]) -> None:
    for item, outcome in zip(batch, outcomes, strict=True):
        if item.future.done():  # given up meanwhile
            continue
        if isinstance(outcome, StatusError):
            item.future.set_exception(outcome)
        else:
            item.future.set_result(outcome)
