"""Journal: what is kept of each request: its metrics, its span, and a line in the log; never what was in it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import grpc
from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from askance.detectors.screen import Screening, Verdict
from askance.service.context import Metadata
from askance.service.log import request_id
from askance.service.status import StatusError
from askance.service.telemetry import Telemetry, is_past

logger = logging.getLogger(__name__)

ERROR = "ERROR"  # in a verdict's place: an image that has no prediction
UNSCREENED = "UNSCREENED"  # one that has nothing else
ALARMING = frozenset({Verdict.ADVERSARIAL.value, UNSCREENED})
"""Verdicts that are worth a line of the log at level INFO."""
_notes: ContextVar[dict[str, Any]] = ContextVar("notes")


def note(**fields: Any) -> None:
    """Add to what is logged of the request under way; nothing that its message holds but its id."""
    _notes.get({}).update(fields)


def verdict_of(answer: object) -> str:
    """What the log says of one image."""
    if isinstance(answer, Screening):
        return answer.verdict.value
    if not isinstance(answer, StatusError):
        return UNSCREENED
    # of what befalls a single image, only being blocked is PERMISSION_DENIED
    return Verdict.ADVERSARIAL.value if answer.code is grpc.StatusCode.PERMISSION_DENIED else ERROR


class Journal:
    """Keeps what is to be known of each request.

    Args:
        telemetry: the metrics.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._tracer = trace.get_tracer("askance")

    @contextmanager
    def request(self, method: str, metadata: Metadata = (), deadline: float | None = None) -> Iterator[None]:
        """Count, time, trace and log one request: its code is that of the StatusError that leaves the block, or OK.

        Args:
            method: one of `telemetry.METHODS`.
            metadata: of its call; a W3C `traceparent` there makes the span a part of the client's trace.
            deadline: the request's, on `time.monotonic`'s clock.
        """
        notes: dict[str, Any] = {}
        _notes.set(notes)
        parent = propagate.extract({key: value for key, value in metadata if isinstance(value, str)})
        start, code, reason = time.perf_counter(), grpc.StatusCode.OK, None
        with self._tracer.start_as_current_span(
            method, parent, SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except StatusError as error:
                code, reason = error.code, error.reason
                raise
            except asyncio.CancelledError:
                code = grpc.StatusCode.DEADLINE_EXCEEDED if is_past(deadline) else grpc.StatusCode.CANCELLED
                raise
            except BaseException:
                code = grpc.StatusCode.INTERNAL
                raise
            finally:
                seconds = time.perf_counter() - start
                self._telemetry.finished(method, code, reason, seconds)
                _mark(span, method, code, notes)
                _log(method, code, reason, seconds, notes)


def _mark(span: Span, method: str, code: grpc.StatusCode, notes: dict[str, Any]) -> None:
    if not span.is_recording():
        return
    span.set_attributes({"rpc.system": "grpc", "rpc.method": method, "rpc.grpc.status_code": code.value[0]})
    span.set_attributes({f"askance.{name}": value for name, value in notes.items()})
    if code is grpc.StatusCode.INTERNAL:
        span.set_status(Status(StatusCode.ERROR))


def _log(method: str, code: grpc.StatusCode, reason: str | None, seconds: float, notes: dict[str, Any]) -> None:
    alarming = ALARMING & set(notes.get("verdicts", ()))
    level = logging.DEBUG
    if code is grpc.StatusCode.INTERNAL:
        level = logging.ERROR
    elif alarming:
        level = logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields = {"method": method, "code": code.name, "seconds": round(seconds, 6), **notes}
    if reason is not None:
        fields["reason"] = reason
    what = ", ".join(sorted(alarming)) or code.name
    who = notes.get("client", "anyone"), notes.get("address", "unknown"), request_id.get("none")
    logger.log(level, "%s for %s (%s, request %s): %s", method, *who, what, extra=fields)
