"""The HTTP adapter of Admission: makes a Call of each HTTP request, and HTTP statuses of its errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from askance.service.call import REQUEST_ID, Call, request_id_of
from askance.service.errors import Code, StatusError, broken, forgetful, too_large
from askance.service.guard.access import AUTHORIZATION, Shown
from askance.service.guard.admission import Admission
from askance.service.guard.reception import Reception
from askance.service.observability.metrics import Metrics

logger = logging.getLogger(__name__)

Behaviour = Callable[[Request, bytes, Call], Awaitable[Response]]
"""What answers a request, given its body; raises StatusError."""

CERTIFICATES = "certificates"
"""Where the server keeps the names of the client's certificate, in the request's state."""
# As grpc-gateway maps the canonical codes.
_STATUS = {
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 401,
}
_TOO_LARGE = 413  # and not 429, which clients take for "later"


def json_response(content: Any, status: int = 200) -> Response:
    """JSON; what is not finite is null."""
    return Response(orjson.dumps(content), status, media_type="application/json")


class Endpoints:
    """Guards the methods of a protocol that travels over HTTP.

    Args:
        admission: what a call passes.
        reception: takes in the bodies.
        metrics: counts methods that do not exist.
        max_bytes: of a request's body.
    """

    def __init__(self, admission: Admission, reception: Reception, metrics: Metrics, max_bytes: int) -> None:
        self._admission = admission
        self._reception = reception
        self._metrics = metrics
        self._max_bytes = max_bytes

    def guarded(self, method: str, behaviour: Behaviour) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint of a method: refused before its body is read where that can be, and cancelled if the client goes
        away meanwhile.
        """
        return partial(self._answer, method, behaviour)

    async def unknown(self, request: Request, error: Exception) -> Response:
        """The answer where there is no such path, or not by that HTTP method."""
        assert isinstance(error, HTTPException)
        self._metrics.unknown_method()
        response = json_response({"error": f"there is no {request.method} {request.url.path[:200]}"}, error.status_code)
        response.headers.update(error.headers or {})
        return response

    async def _answer(self, method: str, behaviour: Behaviour, request: Request) -> Response:
        call = _call(method, request)
        refusal = self._admission.refusal(method)
        if refusal is not None:
            self._admission.refused(method, refusal)
            response = _refusal(refusal)
        else:
            try:
                with self._admission.enter(call, _shown(request)):
                    body = await self._reception.message(call.client, partial(_body, request, self._max_bytes))
                    with self._reception.hold(len(body)):
                        response = await _while_connected(request, behaviour(request, body, call))
            except Exception as error:
                response = _refusal(error)
        response.headers[REQUEST_ID] = call.request_id
        return response


def _call(method: str, request: Request) -> Call:
    host = "" if request.client is None else request.client.host
    return Call(
        method,
        request_id_of(request.headers.get(REQUEST_ID)),
        # as gRPC writes it, so that limits know a client by whichever protocol it comes
        f"ipv6:%5B{host}%5D" if ":" in host else f"ipv4:{host}",
        headers=request.headers,
        transport="http",
    )


def _shown(request: Request) -> Shown:
    return Shown(request.headers.getlist(AUTHORIZATION), getattr(request.state, CERTIFICATES, ()))


async def _body(request: Request, most: int) -> bytes:
    """The request's body; `most` bytes are not exceeded even for a moment.

    Raises:
        StatusError: RESOURCE_EXHAUSTED, it is larger; UNIMPLEMENTED, it is compressed; CANCELLED, the client goes away.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        # small bodies that unfold a thousandfold are an old attack, and image files are compressed already
        raise StatusError(Code.UNIMPLEMENTED, "compressed bodies are not accepted: send it as it is", "invalid")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise too_large(most)
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise too_large(most)
            parts.append(part)
    except ClientDisconnect:
        raise StatusError(Code.CANCELLED, "the client went away", "cancelled") from None
    return b"".join(parts)


async def _while_connected(request: Request, answer: Awaitable[Response]) -> Response:
    """The answer, unless the client goes away first: then nobody works for it any longer.

    Raises:
        StatusError: CANCELLED; or what `answer` raises.
    """
    answering = asyncio.ensure_future(answer)
    watching = asyncio.ensure_future(request.receive())  # the body is read: what comes next is the disconnection
    try:
        await asyncio.wait((answering, watching), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise StatusError(Code.CANCELLED, "the client went away")  # the batcher knows whether it was in time
        return answering.result()
    finally:
        for task in (answering, watching):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


def _refusal(error: Exception) -> Response:
    """The answer to a request that failed; an error that is not ours is a bug, logged here and 500 there."""
    if not isinstance(error, StatusError):
        logger.error("a call failed", exc_info=error)
        error = broken(error)
    is_too_large = error.code is Code.RESOURCE_EXHAUSTED and error.reason == "invalid"
    response = json_response({"error": str(forgetful(error))}, _TOO_LARGE if is_too_large else _STATUS[error.code])
    if error.code is Code.UNAUTHENTICATED:
        response.headers["www-authenticate"] = "Bearer"
    return response
