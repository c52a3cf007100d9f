"""Screening: the servicer of askance.v1.Screening."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor

from torch import Tensor

from service.batcher import Batcher
from service.config import ServerConfig
from service.gate import Context, Gate, deadline_of
from service.images import image_of
from service.messages import describe_response, screen_response
from service.pb.askance.v1 import screening_pb2 as pb
from service.pb.askance.v1 import screening_pb2_grpc
from service.served import Served
from service.status import StatusError, failed, unavailable
from service.telemetry import Telemetry

logger = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["Screening"].full_name
SMALL = 64 * 1024  # bytes: a tensor up to this size is validated in less time than another thread takes to wake
_Task = asyncio.Task[pb.ScreenStreamResponse]


class ScreeningServicer(screening_pb2_grpc.ScreeningServicer):
    """Validates images, has them screened in batches, and answers. Raises StatusError; stands behind a Gate.

    Args:
        config: the limits.
        gate: says when streams must end.
        telemetry: gets the stages, the stream's items and the answers.
        decoders: the threads that decode images.
    """

    def __init__(self, config: ServerConfig, gate: Gate, telemetry: Telemetry, decoders: Executor) -> None:
        self._config = config
        self._gate = gate
        self._telemetry = telemetry
        self._decoders = decoders
        self._deployment: tuple[Served, Batcher] | None = None

    def deploy(self, served: Served, batcher: Batcher) -> None:
        """Answer from `served` through `batcher` from now on; requests under way keep theirs."""
        self._deployment = served, batcher

    async def Screen(self, request: pb.ScreenRequest, context: Context) -> pb.ScreenResponse:  # noqa: N802
        """Screen one image."""
        return await self._screen(request, deadline_of(context))

    async def ScreenStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ScreenRequest], context: Context
    ) -> AsyncIterator[pb.ScreenStreamResponse]:
        """Screen each image of a stream and answer in its order; a bad one gets an error in its place."""
        # Items run concurrently, so that they share batches; the window stops the reader, and through it the client,
        # when answers are not taken.
        window = asyncio.Semaphore(self._config.stream_window)
        items: asyncio.Queue[_Task | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read(request_iterator, items, window, deadline_of(context)))
        item = None
        try:
            while (item := await items.get()) is not None:
                yield await item
                window.release()
            await reader
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            for left in (item, *_drain(items)):
                if left is not None:
                    left.cancel()

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:  # noqa: ARG002, N802
        """Say what is served."""
        served, _ = self._deployed()
        return describe_response(served, self._config)

    def _deployed(self) -> tuple[Served, Batcher]:
        if self._deployment is None:
            raise unavailable("loading")
        return self._deployment

    async def _screen(self, request: pb.ScreenRequest, deadline: float | None) -> pb.ScreenResponse:
        served, batcher = self._deployed()
        with batcher.place() as place:
            with self._telemetry.timed("decode"):
                image = await self._image(request, served)
            screening = await place.screen(image, request.explain, deadline)
        with self._telemetry.timed("respond"):
            self._telemetry.screened(screening)
            return screen_response(request.request_id, served.bundle_id, screening)

    async def _image(self, request: pb.ScreenRequest, served: Served) -> Tensor:
        preprocessing, limit = served.screen.preprocessing, self._config.max_image_pixels
        if not request.encoded and len(request.tensor.data) <= SMALL:
            return image_of(request, preprocessing, limit)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, image_of, request, preprocessing, limit)

    async def _read(
        self,
        requests: AsyncIterator[pb.ScreenRequest],
        items: asyncio.Queue[_Task | None],
        window: asyncio.Semaphore,
        deadline: float | None,
    ) -> None:
        """Start each request as it comes, then put None; StatusError once the server drains."""
        closing = asyncio.create_task(self._gate.closing.wait())
        following: asyncio.Future[pb.ScreenRequest | None] | None = None
        try:
            while True:
                await window.acquire()
                following = asyncio.ensure_future(anext(requests, None))
                await asyncio.wait({following, closing}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    raise unavailable("draining")
                request = following.result()
                if request is None:
                    return
                items.put_nowait(asyncio.create_task(self._item(request, deadline)))
        finally:
            closing.cancel()
            if following is not None:
                following.cancel()
            items.put_nowait(None)

    async def _item(self, request: pb.ScreenRequest, deadline: float | None) -> pb.ScreenStreamResponse:
        """One request of a stream: its answer, or its error in its place."""
        try:
            with self._telemetry.request("ScreenStream", deadline):
                response = await self._screen(request, deadline)
        except StatusError as error:
            failure = error
        except Exception as error:
            logger.exception("an item of a stream failed")
            failure = failed(error)
        else:
            return pb.ScreenStreamResponse(request_id=request.request_id, response=response)
        item_error = pb.ItemError(code=failure.code.value[0], message=str(failure))
        return pb.ScreenStreamResponse(request_id=request.request_id, error=item_error)


def _drain(items: asyncio.Queue[_Task | None]) -> Iterator[_Task | None]:
    while not items.empty():
        yield items.get_nowait()
