"""Tracing: spans of the stages that a request goes through, and where they are sent."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from threading import Event

from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Span

from askance.errors import ConfigError, extra_needed

Stage = tuple[str, int, int]
"""Name, start and end on `time.perf_counter_ns`'s clock."""


_exporting = Event()  # of this process, as OpenTelemetry's provider is


def is_exporting() -> bool:
    """Whether spans are sent anywhere."""
    return _exporting.is_set()


def current_span() -> Span:
    """The span of what is under way; where none are sent one that does nothing, which takes no time to find."""
    return trace.get_current_span() if _exporting.is_set() else INVALID_SPAN


def add_stages(span: Span, stages: Sequence[Stage]) -> None:
    """Add what a request went through to its span, which does nothing unless traces are exported."""
    if not span.is_recording():
        return
    tracer, inside = trace.get_tracer("askance"), trace.set_span_in_context(span)
    epoch = time.time_ns() - time.perf_counter_ns()  # spans are in Unix time
    for name, start, end in stages:
        tracer.start_span(name, inside, start_time=epoch + start).end(epoch + end)


def export_traces() -> Callable[[], None]:
    """Send spans to an OpenTelemetry collector, where and how the standard OTEL_* environment variables say.

    Returns:
        What sends the rest and ends it.

    Raises:
        ConfigError: the extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        raise ConfigError(f"log.traces: {extra_needed('opentelemetry-sdk', 'tracing')}") from None
    os.environ.setdefault("OTEL_SERVICE_NAME", "askance")
    provider = TracerProvider(resource=Resource.create())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    _exporting.set()
    return provider.shutdown
