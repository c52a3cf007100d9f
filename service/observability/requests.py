"""Request log: what is kept of each request: its metrics, its span, and a line in the log; never what was in it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Status, StatusCode

from askance.answers import Answer, Verdict
from askance.service.call import Call, current_call
from askance.service.errors import Code, StatusError
from askance.service.observability.metrics import Metrics, is_past
from askance.service.observability.tracing import is_exporting

logger = logging.getLogger(__name__)

TRACE_PARENT = "traceparent"  # W3C's
ERROR = "ERROR"  # in a verdict's place: an image that has no answer
ALARMING = frozenset({Verdict.ADVERSARIAL.value, Verdict.UNSCREENED.value, Verdict.BLOCKED.value})
"""Verdicts that are worth a line of the log at level INFO."""


def verdict_of(outcome: Answer | StatusError) -> str:
    """What the log says of one image."""
    if isinstance(outcome, StatusError) or outcome.verdict is None:
        return ERROR
    return outcome.verdict.value


class RequestLog:
    """Keeps what is to be known of each request.

    Args:
        metrics: the metrics.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._tracer = trace.get_tracer("askance")

    @contextmanager
    def request(self, call: Call) -> Iterator[None]:
        """Count, time, trace and log one request: its code is that of the StatusError that leaves the block, or OK.

        A W3C `traceparent` among the call's headers makes the span a part of the client's trace.
        """
        current_call.set(call)
        start, code, reason = time.perf_counter(), Code.OK, None
        with self._span(call) as span:
            try:
                yield
            except StatusError as error:
                code, reason = error.code, error.reason
                raise
            except asyncio.CancelledError:
                code = Code.DEADLINE_EXCEEDED if is_past(call.deadline) else Code.CANCELLED
                raise
            except BaseException:
                code = Code.INTERNAL
                raise
            finally:
                seconds = time.perf_counter() - start
                self._metrics.finished(call.method, code, reason, seconds)
                _mark(span, call, code)
                _afterwards(_log, call, code, reason, seconds)

    def _span(self, call: Call) -> AbstractContextManager[Span]:
        """The call's span while the block runs; one that does nothing where nobody traces it."""
        if not is_exporting() and TRACE_PARENT not in call.headers:
            return nullcontext(INVALID_SPAN)
        return self._tracer.start_as_current_span(
            call.method,
            propagate.extract(call.headers),
            SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        )


def _mark(span: Span, call: Call, code: Code) -> None:
    if not span.is_recording():
        return
    span.set_attributes({"rpc.method": call.method, "network.protocol.name": call.transport, "askance.code": code.name})
    if call.transport == "grpc":
        span.set_attributes({"rpc.system": "grpc", "rpc.grpc.status_code": int(code)})
    span.set_attributes({f"askance.{name}": value for name, value in call.notes.items()})
    if code is Code.INTERNAL:
        span.set_status(Status(StatusCode.ERROR))


def _afterwards(write: Callable[..., None], *arguments: Any) -> None:
    """Write a line once the answer is on its way: an image that gets one must not be told by when it is answered."""
    try:
        asyncio.get_running_loop().call_soon(write, *arguments)
    except RuntimeError:  # outside of a server nobody waits
        write(*arguments)


def _log(call: Call, code: Code, reason: str | None, seconds: float) -> None:
    alarming = ALARMING & set(call.notes.get("verdicts", ()))
    level = logging.DEBUG
    if code is Code.INTERNAL:
        level = logging.ERROR
    elif alarming:
        level = logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields = {"method": call.method, "code": code.name, "seconds": round(seconds, 6), **call.notes}
    if reason is not None:
        fields["reason"] = reason
    what = ", ".join(sorted(alarming)) or code.name
    who = call.notes.get("client", "anyone"), call.notes.get("address", "unknown"), call.request_id
    logger.log(level, "%s for %s (%s, request %s): %s", call.method, *who, what, extra=fields)
