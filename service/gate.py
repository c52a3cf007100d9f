"""Gate: what every call passes: refused unless serving, timed and counted, its errors turned into gRPC statuses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import aclosing, contextmanager
from enum import StrEnum
from functools import partial
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from askance.service import log
from askance.service.access import Access, Role, caller
from askance.service.context import REQUEST_ID, Context, Metadata, client_of, deadline_of, metadata_of, request_id_of
from askance.service.journal import Journal, note
from askance.service.status import StatusError, invalid, unavailable
from askance.service.telemetry import UNARY_INFERENCES, Telemetry

logger = logging.getLogger(__name__)

Handler = Any  # grpc.RpcMethodHandler, which is generic to type checkers only


class State(StrEnum):
    """What the server is doing."""

    LOADING = "loading"
    SERVING = "serving"
    STALLED = "stalled"
    LEAVING = "leaving"  # still serving, but not ready for more
    DRAINING = "draining"


OPEN = (State.SERVING, State.LEAVING)


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Guards the calls of some services; others (health, reflection) pass untouched.

    A servicer behind it raises StatusError for people's errors and never touches codes. Unary calls are counted here;
    a streaming servicer counts its items itself, and a stream that fails as a whole is counted here once more.

    Args:
        services: full names of the services guarded.
        telemetry: counts the calls that it refuses as a whole.
        journal: keeps the calls.
        access: knows the clients.
        full: says that a request to screen would be refused for want of room, whatever it holds.
        any_state: methods that are answered in every state and to anyone: probes.
        admin: methods that take the role admin; all others take predict.
    """

    def __init__(
        self,
        services: Collection[str],
        telemetry: Telemetry,
        journal: Journal,
        access: Access,
        full: Callable[[], StatusError | None],
        any_state: Collection[str] = (),
        admin: Collection[str] = (),
    ) -> None:
        self.state = State.LOADING
        self.drained = asyncio.Event()
        """Set once draining and no call is left."""
        self.closing = asyncio.Event()
        """Set once draining: streams end."""
        self._services = frozenset(services)
        self._telemetry = telemetry
        self._journal = journal
        self._access = access
        self._full = full
        self._any_state = frozenset(any_state)
        self._admin = frozenset(admin)
        self.calls = 0
        """Guarded calls under way."""
        self.arrived = 0
        """Guarded calls so far, refused ones too."""
        self._handlers: dict[str, Handler] = {}
        self._refusals: dict[str, Callable[[StatusError], Handler]] = {}

    def open(self) -> None:
        """Let calls through, unless draining has begun."""
        if self.state is State.LOADING:
            self.state = State.SERVING

    def stall(self, stalled: bool) -> None:
        """Refuse calls while the inference thread does not come back."""
        if self.state in (State.SERVING, State.STALLED):
            self.state = State.STALLED if stalled else State.SERVING

    def leave(self) -> None:
        """Look unready, and let calls through all the same, until `close`; a stalled server would answer none."""
        if self.state is State.SERVING:
            self.state = State.LEAVING

    def close(self) -> None:
        """Refuse calls from now on; `drained` is set once those under way are over."""
        self.state = State.DRAINING
        self.closing.set()
        if self.calls == 0:
            self.drained.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a guarded method; count a method that does not exist."""
        path = handler_call_details.method
        guarded = self._handlers.get(path)
        if guarded is not None:
            if self.state in OPEN and path in self._refusals and (error := self._full()) is not None:
                return self._refusals[path](error)
            return guarded
        handler = await continuation(handler_call_details)
        if handler is None:
            self._telemetry.unknown_method()
            return handler
        service, _, method = path.lstrip("/").partition("/")
        if service not in self._services:
            return handler
        if method in UNARY_INFERENCES:
            self._refusals[path] = partial(self._refusal, method)
        return self._handlers.setdefault(path, self._guarded(method, handler))

    def _refusal(self, method: str, error: StatusError) -> Handler:
        """A handler that refuses before the message is read: under overload most of the work is to refuse.

        It is one of a stream, of which nothing need be read; on the wire there is no difference.
        """

        async def refuse(_requests: AsyncIterator[Any], context: Context) -> None:
            self.arrived += 1
            self._telemetry.failed(method, error)
            context.set_code(error.code)
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
            metadata = metadata_of(context)
            try:
                with self._entered(context, metadata), self._journal.request(method, metadata, deadline_of(context)):
                    if method not in self._any_state:
                        self._check(method, context, metadata)
                    return await behaviour(_parsed(request), context)
            except Exception as error:
                await _abort(context, error)

        return call

    def _streaming(self, method: str, behaviour: Any) -> Any:
        async def call(requests: AsyncIterator[Any], context: Context) -> None:
            metadata = metadata_of(context)
            try:
                with self._entered(context, metadata):
                    self._check(method, context, metadata)
                    # Written here, not yielded, so that a cancellation lands here too and the call is counted out.
                    async with aclosing(behaviour(_all_parsed(requests), context)) as responses:
                        async for response in responses:
                            await context.write(response)
            except Exception as error:
                self._telemetry.failed(method, error)
                await _abort(context, error)

        return call

    @contextmanager
    def _entered(self, context: Context, metadata: Metadata) -> Iterator[None]:
        name = request_id_of(metadata)
        log.request_id.set(name)
        context.set_trailing_metadata(((REQUEST_ID, name),))
        self.arrived += 1
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1
            if self.calls == 0 and self.state is State.DRAINING:
                self.drained.set()

    def _check(self, method: str, context: Context, metadata: Metadata) -> None:
        """Refuse unless serving, and a client that may not ask; `access.caller` is set for the call."""
        note(address=client_of(context))
        if self.state not in OPEN:
            raise unavailable(self.state.value)
        identity = self._access.identify(metadata, context.auth_context())
        identity.require(Role.ADMIN if method in self._admin else Role.PREDICT)
        if method in self._admin:
            logger.info("%s by %s", method, identity.name)
        caller.set(identity)


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


async def _abort(context: Context, error: Exception) -> NoReturn:
    """End the call with the error's status; one that is not ours is a bug, logged here and INTERNAL there."""
    if isinstance(error, StatusError):
        await context.abort(error.code, str(error))
    logger.error("a call failed", exc_info=error)
    await context.abort(
        grpc.StatusCode.INTERNAL, f"the server failed on this call: {type(error).__name__}, see its log"
    )
