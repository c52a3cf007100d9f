"""The gRPC adapter of Admission: makes a Call of each gRPC call, and gRPC statuses of its errors.

Every method, health and reflection too, is served as one that reads a stream. So a call begins with its headers: who
makes it, and whether it may, are settled before anything is received; its message is then received as bytes, within
the memory meant for it, and parsed only when it is to be answered. On the wire there is no difference.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

from askance.service.call import REQUEST_ID, Call, request_id_of
from askance.service.errors import StatusError, broken, forgetful, invalid
from askance.service.guard import wire
from askance.service.guard.access import AUTHORIZATION, Shown
from askance.service.guard.admission import Admission, Kind
from askance.service.guard.limits import QUESTION_BYTES
from askance.service.guard.reception import Reception
from askance.service.observability.metrics import Metrics

logger = logging.getLogger(__name__)

Handler = Any  # grpc.RpcMethodHandler, which is generic to type checkers only
Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request")
CERTIFICATE_NAMES = ("x509_common_name", "x509_subject_alternative_name")


class Sent(Generic[Request]):
    """A message that is there, not yet parsed.

    Args:
        content: its bytes.
        kind: its type.
        parse: makes the message of its bytes.
        reception: keeps count of its bytes.
        most_images: that it may hold.
    """

    def __init__(
        self,
        content: bytes,
        kind: Descriptor,
        parse: Callable[[bytes], Request],
        reception: Reception,
        most_images: int,
    ) -> None:
        self._content = content
        self._kind = kind
        self._parse = parse
        self._reception = reception
        self._most_images = most_images

    def held(self) -> AbstractContextManager[None]:
        """While the block runs, the memory that it takes is held.

        Raises:
            StatusError: RESOURCE_EXHAUSTED on entry, there is no room for it.
        """
        return self._reception.hold(len(self._content))

    def parsed(self) -> Request:
        """The message, once: its bytes are let go of, and are in the message alone from then on.

        Raises:
            StatusError: INVALID_ARGUMENT, it is no message, or would take far more memory than it has bytes.
        """
        content, self._content = self._content, b""
        wire.check(content, self._kind, self._most_images)
        try:
            return self._parse(content)
        except DecodeError:
            raise wire.unreadable(content) from None


class Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Guards the methods of some services; of others (health, reflection) only the messages, which are small.

    A method that screens gets its request, or the requests of its stream, as Sent, and parses them when it has to.

    Args:
        services: full names of the services guarded, and the kinds of their methods.
        admission: what a call passes.
        reception: takes in the messages.
        metrics: counts methods that do not exist.
        most_images: that a message may hold.
    """

    def __init__(
        self,
        services: Mapping[str, Mapping[str, Kind]],
        admission: Admission,
        reception: Reception,
        metrics: Metrics,
        most_images: int,
    ) -> None:
        self._services = services
        self._admission = admission
        self._reception = reception
        self._metrics = metrics
        self._most_images = most_images
        self._handlers: dict[str, Handler] = {}
        self._unread: dict[str, str] = {}  # the methods that may be refused unread, by path

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a method; count a method that does not exist."""
        path = handler_call_details.method
        wrapped = self._handlers.get(path)
        if wrapped is not None:
            method = self._unread.get(path)
            if method is not None and (error := self._admission.refusal(method)) is not None:
                return self._refusal(method, error)
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None:
            self._metrics.unknown_method()
            return handler
        service, _, method = path.lstrip("/").partition("/")
        kind = self._services.get(service, {}).get(method)
        if kind is Kind.SCREENS:
            self._unread[path] = method
        message = wire.request_type(service, method)
        return self._handlers.setdefault(path, self._wrapped(_Method(method, kind, handler, message)))

    def _refusal(self, method: str, error: StatusError) -> Handler:
        """A handler that refuses before the message is read: under overload most of the work is to refuse."""

        async def refuse(_requests: AsyncIterator[Any], context: Context) -> None:
            self._admission.refused(method, error)
            _end(context, error)

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _wrapped(self, method: _Method) -> Handler:
        """A handler that reads a stream of bytes, with one answer where the method has one."""
        handler = method.handler
        if not (handler.request_streaming or handler.response_streaming):
            answer = _answering(partial(self._answer, method))
            return grpc.stream_unary_rpc_method_handler(answer, response_serializer=handler.response_serializer)
        if method.kind is Kind.STREAMS:
            behaviour = self._stream
        else:
            behaviour = self._conversation if handler.request_streaming else self._watch
        answers = _streaming(partial(behaviour, method))
        return grpc.stream_stream_rpc_method_handler(answers, response_serializer=handler.response_serializer)

    async def _answer(self, method: _Method, context: Context) -> Any:
        """The answer of a method of one message; one that is not guarded (health) passes no Admission."""
        if method.kind is None:
            sent = await self._one(method, context, _address(context.peer() or ""))
            return await method.handler.unary_unary(sent.parsed(), context)
        made, shown = _call(method.name, context)
        with self._admission.enter(made, shown):
            sent = await self._one(method, context, made.client)
            with sent.held():
                request = sent if method.kind is Kind.SCREENS else sent.parsed()
                return await method.handler.unary_unary(request, context)

    async def _stream(self, method: _Method, context: Context) -> None:
        made, shown = _call(method.name, context)
        with self._admission.enter(made, shown):
            await _write_all(method.handler.stream_stream(self._all(method, context, made.client), context), context)

    async def _watch(self, method: _Method, context: Context) -> None:
        """A method that is not guarded, and answers one message with many, which it writes itself: health."""
        sent = await self._one(method, context, _address(context.peer() or ""))
        await method.handler.unary_stream(sent.parsed(), context)

    async def _conversation(self, method: _Method, context: Context) -> None:
        """A method that is not guarded, of many messages: reflection."""
        sent = self._all(method, context, _address(context.peer() or ""))
        await _write_all(method.handler.stream_stream((one.parsed() async for one in sent), context), context)

    async def _one(self, method: _Method, context: Context, client: str) -> Sent[Any]:
        """The one message of a call.

        Raises:
            StatusError: there is none, or it is too large for what it is to say, or it did not arrive.
        """
        sent = await self._next(method, context, client, is_request=True)
        if sent is None:  # nor is a message there that gRPC found too large, and answered itself
            raise invalid("request", "a message", "none")
        return sent

    async def _all(self, method: _Method, context: Context, client: str) -> AsyncIterator[Sent[Any]]:
        """The messages of a stream, until its client has no more."""
        while (sent := await self._next(method, context, client, is_request=False)) is not None:
            yield sent

    async def _next(self, method: _Method, context: Context, client: str, *, is_request: bool) -> Sent[Any] | None:
        content = await self._reception.message(client, partial(_read, context), is_request=is_request)
        return self._sent(method, content) if isinstance(content, bytes) else None

    def _sent(self, method: _Method, content: bytes) -> Sent[Any]:
        if method.kind not in (Kind.SCREENS, Kind.STREAMS) and len(content) > QUESTION_BYTES:
            raise invalid("request", f"at most {QUESTION_BYTES} bytes", str(len(content)))
        return Sent(content, method.message, method.handler.request_deserializer, self._reception, self._most_images)


@dataclass(frozen=True)
class _Method:
    """A method of a service: its name, its kind where it is guarded, gRPC's handler of it, the type of its messages."""

    name: str
    kind: Kind | None
    handler: Handler
    message: Descriptor


_reads: set[asyncio.Task[Any]] = set()


async def _read(context: Context) -> Any:
    """The next message as bytes, or the end; goes on when it is cancelled, until the call is over.

    gRPC never frees a message that comes in after its read was cancelled.
    """
    reading = asyncio.create_task(context.read())
    _reads.add(reading)
    reading.add_done_callback(_over)
    return await asyncio.shield(reading)


def _over(reading: asyncio.Task[Any]) -> None:
    _reads.discard(reading)
    if not reading.cancelled():
        reading.exception()  # that the call is over is no news


def _call(method: str, context: Context) -> tuple[Call, Shown]:
    """What gRPC knows of a call, read once; its id goes back in the trailing metadata."""
    metadata = context.invocation_metadata() or ()
    pairs: list[tuple[str, str | bytes]] = [(key, value) for key, value in metadata]
    headers = {key: value for key, value in pairs if isinstance(value, str)}
    remaining = context.time_remaining()
    call = Call(
        method,
        request_id_of(next((value for key, value in pairs if key == REQUEST_ID), None)),
        _address(context.peer() or ""),
        None if remaining is None else time.monotonic() + remaining,
        headers,
    )
    context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
    certificate = context.auth_context()
    names = [name.decode(errors="replace") for key in CERTIFICATE_NAMES for name in certificate.get(key, ())]
    return call, Shown([value for key, value in pairs if key == AUTHORIZATION], names)


def _address(peer: str) -> str:
    """The client's address without its port, "ipv4:127.0.0.1"; a call made within the process has none."""
    return peer.rpartition(":")[0] if peer.startswith("ip") else peer


def _answering(answer: Callable[[Context], Awaitable[Any]]) -> Any:
    """A handler of one answer, sent with its status; a refusal is a status and nothing else, so that clients whose
    service config says so try elsewhere.
    """

    async def call(requests: AsyncIterator[Any], context: Context) -> Any:
        try:
            return await answer(context)
        except Exception as error:
            code, details = _status_of(error)
        try:
            await context.abort(code, details)
        finally:
            # gRPC keeps the exception that this raises, and with it this frame, in what these two hold: a cycle, which
            # only a garbage collection would end
            del requests, context

    return call


def _streaming(answer: Callable[[Context], Awaitable[None]]) -> Any:
    """A handler that writes its answers itself."""

    async def call(_requests: AsyncIterator[Any], context: Context) -> None:
        try:
            await answer(context)
        except Exception as error:
            _end(context, error)

    return call


async def _write_all(responses: AsyncGenerator[Any], context: Context) -> None:
    """Written here, not yielded, so that a cancellation lands in the call, and it is counted out."""
    async with aclosing(responses):
        async for response in responses:
            await context.write(response)


def _end(context: Context, error: Exception) -> None:
    """End a stream with the error's status."""
    code, details = _status_of(error)
    context.set_code(code)
    context.set_details(details)


def _status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status and its text; of an error that is not ours INTERNAL, and the rest in the log: it is a bug."""
    if not isinstance(error, StatusError):
        logger.error("a call failed", exc_info=error)
        error = broken(error)
    return grpc.StatusCode[error.code.name], str(forgetful(error))
