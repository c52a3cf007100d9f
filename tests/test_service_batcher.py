"""The micro-batcher alone: who shares a call, who is dropped, and what a failure touches."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
from review_support import answered
from service_support import Valve, marked, until

from askance.answers import Answer, Verdict
from askance.errors import ScreenError
from askance.images import Batch
from askance.screening.reading import Observe
from askance.service.errors import Code, StatusError
from askance.service.observability.metrics import Metrics
from askance.service.runtime.batcher import Batcher, ScreenCall


@asynccontextmanager
async def batching(
    screen: ScreenCall, max_batch: int = 4, queue_size: int = 100, reserve: float = 0.0
) -> AsyncIterator[Batcher]:
    with ThreadPoolExecutor(1) as executor:
        batcher = Batcher(screen, executor, max_batch, queue_size, Metrics(max_batch), reserve=reserve)
        batcher.start()
        yield batcher
        await batcher.stop()


async def screened(batcher: Batcher, value: float, deadline: float | None = None) -> Answer:
    with batcher.slot() as slot:
        return await slot.screen(marked(value), deadline=deadline)


def test_what_waits_shares_a_call_up_to_the_limit_in_order() -> None:
    async def main() -> None:
        valve = Valve()
        async with batching(valve) as batcher:
            valve.shut()
            calls = [asyncio.ensure_future(screened(batcher, 0.01))]
            await until(valve.entered.is_set)
            calls += [asyncio.ensure_future(screened(batcher, i / 20)) for i in range(1, 7)]
            await until(lambda: batcher.held == 6)
            valve.opened.set()
            await asyncio.gather(*calls)
            assert valve.batches == [[0.01], [0.05, 0.1, 0.15, 0.2], [0.25, 0.3]]
            assert batcher.held == 0

    asyncio.run(main())


def test_a_passed_deadline_is_dropped_before_the_classifier() -> None:
    async def main() -> None:
        valve = Valve()
        async with batching(valve) as batcher:
            with pytest.raises(StatusError, match="the deadline passed while the request was waiting") as caught:
                await screened(batcher, 0.2, deadline=time.monotonic() - 1)
            assert caught.value.code is Code.DEADLINE_EXCEEDED
            await screened(batcher, 0.3, deadline=time.monotonic() + 3600)
            assert valve.batches == [[0.3]]

    asyncio.run(main())


def test_a_slot_is_free_again_after_every_ending() -> None:
    async def main() -> None:
        valve = Valve()
        async with batching(valve, queue_size=1) as batcher:
            await screened(batcher, 0.1)
            with pytest.raises(StatusError):
                await screened(batcher, Valve.POISON)
            with pytest.raises(ZeroDivisionError), batcher.slot():
                raise ZeroDivisionError
            with batcher.slot(), pytest.raises(StatusError, match=r"the queue is full \(1 requests are waiting\)"):
                batcher.slot()
            await screened(batcher, 0.2)
            assert batcher.held == 0

    asyncio.run(main())


def test_a_screen_that_loses_results_fails_its_images_and_nothing_hangs() -> None:
    def lossy(images: Batch, explain: Sequence[bool], observe: Observe) -> list[Answer | ScreenError]:
        return []

    async def main() -> None:
        async with batching(lossy) as batcher:
            outcomes = await asyncio.gather(*(screened(batcher, i / 10) for i in range(3)), return_exceptions=True)
            assert [str(outcome) for outcome in outcomes] == [
                "this image could not be screened: RuntimeError, see the server's log"
            ] * 3

    asyncio.run(main())


def test_stopping_answers_the_call_under_way_and_refuses_the_rest() -> None:
    async def main() -> None:
        valve = Valve()
        async with batching(valve, max_batch=1) as batcher:
            valve.shut()
            first = asyncio.ensure_future(screened(batcher, 0.1))
            await until(valve.entered.is_set)
            second = asyncio.ensure_future(screened(batcher, 0.2))
            await until(lambda: batcher.held == 1)
            stopping = asyncio.ensure_future(batcher.stop())
            await asyncio.sleep(0)
            valve.opened.set()
            await stopping
            assert (await first).prediction is not None
            with pytest.raises(StatusError, match="the server is draining: try again or another server"):
                await second
            assert valve.batches == [[0.1]]

    asyncio.run(main())


def told(caplog: pytest.LogCaptureFixture, text: str) -> int:
    """How often the log says it, tracebacks and all."""
    whole = "\n".join(f"{record.getMessage()}\n{record.exc_text or ''}" for record in caplog.records)
    return whole.count(text)


class Broken(Valve):
    """Fails on every image, by itself too."""

    def __call__(
        self, images: Batch, explain: Sequence[bool] | bool = False, observe: Observe | None = None
    ) -> list[Answer | ScreenError]:
        super().__call__(images, explain, observe)
        raise RuntimeError("no kernel image")

    def classify(self, images: Batch) -> list[Answer | ScreenError]:
        raise RuntimeError("no kernel image")


@pytest.mark.parametrize("fail_open", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_what_befell_an_image_is_logged_once(caplog: pytest.LogCaptureFixture, fail_open: bool, together: bool) -> None:
    """Alone or in a batch that is tried again image by image, with a classifier to fall back on or without."""

    async def main() -> None:
        valve = Broken()
        valve.shut()
        metrics = Metrics(4)
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(valve, executor, 4, 100, metrics, valve.classify if fail_open else None)
            calls = [asyncio.ensure_future(screened(batcher, 0.1 * i)) for i in range(3 if together else 1)]
            await until(lambda: batcher.held == len(calls))
            batcher.start()
            valve.opened.set()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(outcome, StatusError) for outcome in outcomes)
            await batcher.stop()

    asyncio.run(main())
    assert told(caplog, "RuntimeError: no kernel image") == (3 if together else 1)
    assert told(caplog, "a batch of 3 failed (RuntimeError), trying its images one by one") == together


class Stepping(Executor):
    """Runs nothing until it is told."""

    def __init__(self, events: list[str]) -> None:
        self.given: deque[Callable[[], object]] = deque()
        self._events = events

    def submit(self, call: Any, /, *arguments: Any, **_: Any) -> Future[Any]:
        self._events.append("begun")
        self.given.append(partial(call, *arguments))
        return Future()


def test_the_thread_gets_the_next_batch_before_the_last_ones_answers_are_sent() -> None:
    async def main() -> None:
        events: list[str] = []
        executor = Stepping(events)
        batcher = Batcher(Valve(), executor, 1, 100, Metrics(1))
        batcher.start()

        async def ask(value: float) -> None:
            await screened(batcher, value)
            events.append("answered")

        calls = [asyncio.ensure_future(ask(value)) for value in (0.1, 0.2)]
        for _ in calls:
            await until(lambda: bool(executor.given))
            executor.given.popleft()()
        await asyncio.gather(*calls)
        assert events == ["begun", "begun", "answered", "answered"]
        await batcher.stop()

    asyncio.run(main())


def test_a_classifier_that_would_end_the_process_fails_its_images_alone() -> None:
    def screen(images: Batch, *_: object) -> list[Answer | ScreenError]:
        if float(np.asarray(images).flat[0]) > 0.5:
            raise SystemExit(3)
        return [answered(Verdict.CLEAN).answer] * len(images)

    async def main() -> None:
        async with batching(screen) as batcher:
            with pytest.raises(StatusError, match="this image could not be screened: SystemExit") as caught:
                await screened(batcher, 0.9)
            assert caught.value.code is Code.INTERNAL
            assert (await screened(batcher, 0.1)).verdict is not None

    asyncio.run(main())
