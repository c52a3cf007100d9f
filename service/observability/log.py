"""Log: how lines are written, and the ids of the request that they belong to."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from enum import StrEnum

from opentelemetry import trace
from opentelemetry.trace import format_span_id, format_trace_id
from pythonjsonlogger.json import JsonFormatter

from askance.service.call import current_call

OWN = ("askance",)
GRPC = "grpc"
"""It logs a traceback for each call that is over before it is answered, a message too large among them: anyone could
fill the log with these. What our own methods raise is logged where it is caught.
"""


class LogFormat(StrEnum):
    """How a line is written.

    Attributes:
        TEXT: for people.
        JSON: an object a line, for machines.
    """

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least that is written; at DEBUG a line for each request, at INFO for what was flagged or failed here."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Ids(logging.Filter):
    """Gives each line the ids of the request, and of the trace, that it belongs to."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True."""
        if (call := current_call.get()) is not None:
            record.request_id = call.request_id
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            record.trace_id, record.span_id = format_trace_id(span.trace_id), format_span_id(span.span_id)
        return True


class _Json(JsonFormatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def handler(form: LogFormat, worker: int | None = None) -> logging.Handler:
    """What writes lines to standard error, each with the number of the worker whose it is, where there are several."""
    made = logging.StreamHandler()
    made.addFilter(Ids())
    if form is LogFormat.JSON:
        names = {"asctime": "time", "levelname": "level", "name": "logger"}
        static = None if worker is None else {"worker": worker}
        made.setFormatter(
            _Json("%(asctime)s%(levelname)s%(name)s%(message)s", rename_fields=names, static_fields=static)
        )
    else:
        who = "" if worker is None else f"worker {worker}: "
        made.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {who}%(message)s"))
    return made


def configure(level: LogLevel, form: LogFormat, worker: int | None = None) -> None:
    """Set up this process's log, which may be that of a worker.

    The level is that of our own lines: others' would tell what is in the images (Pillow prints EXIF at DEBUG).
    """
    logging.basicConfig(level=logging.WARNING, handlers=[handler(form, worker)], force=True)
    logging.getLogger(GRPC).setLevel(logging.CRITICAL)
    for name in OWN:
        logging.getLogger(name).setLevel(level.upper())
