"""Clients: screen images on a server from plain Python, blocking or asyncio, with Answers and errors for people."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from askance.answers import Answer
from askance.images import ImageLike
from askance.service.client_messages import (
    CHANNEL_OPTIONS,
    Credentials,
    ServiceError,
    answer_of,
    blocked_answer,
    is_blocked,
    outcome_of,
    request_of,
    service_error,
)
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.askance.v1 import screening_pb2_grpc

TARGET = "127.0.0.1:8500"
TIMEOUT_SECONDS = 30.0
NO_CREDENTIALS = Credentials()


class Client:
    """A connection to a server; a context manager. Safe to share by threads.

    Args:
        target: HOST:PORT.
        timeout: seconds that a call may take; for a stream, the whole of it. None waits for ever.
        credentials: who we are, and whom we believe.

    Raises:
        ConfigError: the credentials cannot be used.
    """

    def __init__(
        self,
        target: str = TARGET,
        timeout: float | None = TIMEOUT_SECONDS,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        self.target = target
        self.timeout = timeout
        self._metadata = credentials.metadata
        secured = credentials.channel_credentials(target)
        self._channel = (
            grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
            if secured is None
            else grpc.secure_channel(target, secured, options=CHANNEL_OPTIONS)
        )
        self._stub: Any = screening_pb2_grpc.ScreeningStub(self._channel)  # type: ignore[no-untyped-call]

    def screen(self, image: ImageLike, *, explain: bool = False, request_id: str = "") -> Answer:
        """Screen one image.

        Args:
            image: a path, a file's content, a PIL image, or pixels (`askance.images.ImageLike`).
            explain: whether each detector explains itself; for clients with the role explanations.
            request_id: for the server's log.

        Raises:
            ServiceError: nothing answers at the target, or the server refuses; one line says why.
            DataError: the image cannot be sent: no such file, or an array of another type or dimension.
        """
        request = request_of(image, explain=explain, request_id=request_id)
        try:
            return answer_of(self._stub.Screen(request, timeout=self.timeout, metadata=self._metadata))
        except grpc.RpcError as error:
            if is_blocked(error):
                return blocked_answer()
            raise service_error(error, self.target, self.timeout) from None

    def screen_many(self, images: Iterable[ImageLike], *, explain: bool = False) -> Iterator[Answer | ServiceError]:
        """Screen images over one stream; yields, in their order, the answer or the error of each.

        Raises:
            ServiceError: the stream as a whole failed.
            DataError: an image cannot be sent.
        """
        unsendable: list[Exception] = []

        def requests() -> Iterator[pb.ScreenRequest]:
            try:
                for i, image in enumerate(images):
                    yield request_of(image, explain=explain, request_id=str(i))
            except Exception as error:  # on gRPC's thread, where nobody would see it
                unsendable.append(error)

        call = self._stub.ScreenStream(requests(), timeout=self.timeout, metadata=self._metadata)
        try:
            for response in call:
                yield outcome_of(response)
        except grpc.RpcError as error:
            raise service_error(error, self.target, self.timeout) from None
        finally:
            call.cancel()
        if unsendable:
            raise unsendable[0]

    def describe(self) -> pb.DescribeResponse:
        """Ask what is served.

        Raises:
            ServiceError: nothing answers at the target, or the server does not serve.
        """
        try:
            response: pb.DescribeResponse = self._stub.Describe(
                pb.DescribeRequest(), timeout=self.timeout, metadata=self._metadata
            )
            return response
        except grpc.RpcError as error:
            raise service_error(error, self.target, self.timeout) from None

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """The same for asyncio: an asynchronous context manager, made and used on one event loop.

    Args and errors are those of `Client`.
    """

    def __init__(
        self,
        target: str = TARGET,
        timeout: float | None = TIMEOUT_SECONDS,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        self.target = target
        self.timeout = timeout
        self._metadata = credentials.metadata
        secured = credentials.channel_credentials(target)
        self._channel = (
            grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
            if secured is None
            else grpc.aio.secure_channel(target, secured, options=CHANNEL_OPTIONS)
        )
        self._stub: Any = screening_pb2_grpc.ScreeningStub(self._channel)  # type: ignore[no-untyped-call]

    async def screen(self, image: ImageLike, *, explain: bool = False, request_id: str = "") -> Answer:
        """Screen one image; see `Client.screen`."""
        request = request_of(image, explain=explain, request_id=request_id)
        try:
            return answer_of(await self._stub.Screen(request, timeout=self.timeout, metadata=self._metadata))
        except grpc.aio.AioRpcError as error:
            if is_blocked(error):
                return blocked_answer()
            raise service_error(error, self.target, self.timeout) from None

    async def screen_many(
        self, images: Iterable[ImageLike], *, explain: bool = False
    ) -> AsyncIterator[Answer | ServiceError]:
        """Screen images over one stream; see `Client.screen_many`."""
        unsendable: list[Exception] = []

        async def requests() -> AsyncIterator[pb.ScreenRequest]:
            try:
                for i, image in enumerate(images):
                    yield request_of(image, explain=explain, request_id=str(i))
            except Exception as error:  # gRPC would only end the call
                unsendable.append(error)

        call = self._stub.ScreenStream(requests(), timeout=self.timeout, metadata=self._metadata)
        try:
            async for response in call:
                yield outcome_of(response)
        except grpc.aio.AioRpcError as error:
            raise service_error(error, self.target, self.timeout) from None
        finally:
            call.cancel()
        if unsendable:
            raise unsendable[0]

    async def describe(self) -> pb.DescribeResponse:
        """Ask what is served; see `Client.describe`."""
        try:
            response: pb.DescribeResponse = await self._stub.Describe(
                pb.DescribeRequest(), timeout=self.timeout, metadata=self._metadata
            )
            return response
        except grpc.aio.AioRpcError as error:
            raise service_error(error, self.target, self.timeout) from None

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
