"""The gRPC adapter of Admission: makes a Call of each gRPC call, and gRPC statuses of its errors."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from askance.service.call import REQUEST_ID, Call, request_id_of
from askance.service.errors import Code, StatusError, broken, invalid
from askance.service.guard.access import AUTHORIZATION, Shown
from askance.service.guard.admission import Admission, Kind
from askance.service.observability.metrics import Metrics

logger = logging.getLogger(__name__)

Handler = Any  # grpc.RpcMethodHandler, which is generic to type checkers only
Context = grpc.aio.ServicerContext[Any, Any]
CERTIFICATE_NAMES = ("x509_common_name", "x509_subject_alternative_name")


class Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Guards the methods of some services; others (health, reflection) pass untouched.

    Args:
        services: full names of the services guarded, and the kinds of their methods.
        admission: what a call passes.
        metrics: counts methods that do not exist.
    """

    def __init__(self, services: Mapping[str, Mapping[str, Kind]], admission: Admission, metrics: Metrics) -> None:
        self._services = services
        self._admission = admission
        self._metrics = metrics
        self._handlers: dict[str, Handler] = {}
        self._unread: dict[str, str] = {}  # the methods that may be refused unread, by path

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a guarded method; count a method that does not exist."""
        path = handler_call_details.method
        guarded = self._handlers.get(path)
        if guarded is not None:
            method = self._unread.get(path)
            if method is not None and (error := self._admission.refusal(method)) is not None:
                return self._refusal(method, error)
            return guarded
        handler = await continuation(handler_call_details)
        if handler is None:
            self._metrics.unknown_method()
            return handler
        service, _, method = path.lstrip("/").partition("/")
        if service not in self._services:
            return handler
        if self._services[service][method] is Kind.SCREENS:
            self._unread[path] = method
        return self._handlers.setdefault(path, self._guarded(method, handler))

    def _refusal(self, method: str, error: StatusError) -> Handler:
        """A handler that refuses before the message is read: under overload most of the work is to refuse.

        It is one of a stream, of which nothing need be read; on the wire there is no difference.
        """

        async def refuse(_requests: AsyncIterator[Any], context: Context) -> None:
            self._admission.refused(method, error)
            context.set_code(_status(error.code))
            context.set_details(str(error))

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _guarded(self, method: str, handler: Handler) -> Handler:
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._streaming(method, handler.stream_stream),
                request_deserializer=_parser(handler.request_deserializer),
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary),
            request_deserializer=_parser(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _unary(self, method: str, behaviour: Any) -> Any:
        async def call(request: Any, context: Context) -> Any:
            made, shown = _call(method, context)
            try:
                with self._admission.enter(made, shown):
                    return await behaviour(_parsed(request), context)
            except Exception as error:
                await _abort(context, error)

        return call

    def _streaming(self, method: str, behaviour: Any) -> Any:
        async def call(requests: AsyncIterator[Any], context: Context) -> None:
            made, shown = _call(method, context)
            try:
                with self._admission.enter(made, shown):
                    # Written here, not yielded, so that a cancellation lands here too and the call is counted out.
                    async with aclosing(behaviour(_all_parsed(requests), context)) as responses:
                        async for response in responses:
                            await context.write(response)
            except Exception as error:
                await _abort(context, error)

        return call


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


def _parser(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`parse`, but giving an error instead of raising it: outside the call gRPC would say UNKNOWN, uncounted."""

    def parse_or_error(content: bytes) -> Any:
        try:
            return parse(content)
        except DecodeError:
            return invalid("request", "a message of the method's type", f"{len(content)} bytes that are not one")

    return parse_or_error


def _parsed(request: Any) -> Any:
    if isinstance(request, StatusError):
        raise request
    return request


async def _all_parsed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _parsed(request)


def _status(code: Code) -> grpc.StatusCode:
    return grpc.StatusCode[code.name]


async def _abort(context: Context, error: Exception) -> NoReturn:
    """End the call with the error's status; one that is not ours is a bug, logged here and INTERNAL there."""
    if not isinstance(error, StatusError):
        logger.error("a call failed", exc_info=error)
        error = broken(error)
    await context.abort(_status(error.code), str(error))
