"""Streaming: the requests of a stream run concurrently and are answered in their order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from askance.service.errors import unavailable

Request = TypeVar("Request")
Response = TypeVar("Response")


async def in_order(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Coroutine[Any, Any, Response]],
    window: int,
    closing: asyncio.Event,
) -> AsyncGenerator[Response]:
    """Answer each request of a stream, in its order.

    Requests run concurrently, so that they share batches; the window stops the reader, and through it the client, when
    answers are not taken.

    Args:
        requests: as they come.
        answer: one; it must not raise.
        window: the most requests in flight.
        closing: set once the server drains.

    Raises:
        StatusError: UNAVAILABLE once `closing` is set and what was read is answered.
    """
    free = asyncio.Semaphore(window)
    items: asyncio.Queue[asyncio.Task[Response] | None] = asyncio.Queue()
    reader = asyncio.create_task(_read(requests, answer, items, free, closing))
    item = None
    try:
        while (item := await items.get()) is not None:
            yield await item
            free.release()
        await reader
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        for left in (item, *_drain(items)):
            if left is not None:
                left.cancel()


async def _read(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Coroutine[Any, Any, Response]],
    items: asyncio.Queue[asyncio.Task[Response] | None],
    free: asyncio.Semaphore,
    closing: asyncio.Event,
) -> None:
    """Start each request as it comes, then put None; StatusError once the server drains."""
    closed = asyncio.create_task(closing.wait())
    following: asyncio.Future[Request | None] | None = None
    try:
        while True:
            await free.acquire()
            following = asyncio.ensure_future(anext(requests, None))
            await asyncio.wait({following, closed}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                raise unavailable("draining")
            request = following.result()
            if request is None:
                return
            items.put_nowait(asyncio.create_task(answer(request)))
    finally:
        closed.cancel()
        if following is not None:
            following.cancel()
        del following  # what it raised holds this frame
        items.put_nowait(None)


def _drain(items: asyncio.Queue[asyncio.Task[Response] | None]) -> Iterator[asyncio.Task[Response] | None]:
    while not items.empty():
        yield items.get_nowait()
