"""Context: what a call says of itself beside its message."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Sequence
from typing import Any

import grpc

Context = grpc.aio.ServicerContext[Any, Any]
Metadata = Sequence[tuple[str, str | bytes]]

REQUEST_ID = "x-request-id"
_PLAIN = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)


def metadata_of(context: Context) -> Metadata:
    """The call's metadata."""
    return context.invocation_metadata() or ()  # type: ignore[return-value]  # pairs, whatever grpc-stubs says


def request_id_of(metadata: Metadata) -> str:
    """The id that a gateway gave the call (`x-request-id`), a new one where there is none or none fit for a log."""
    given = next((value for key, value in metadata if key == REQUEST_ID), "")
    return given if isinstance(given, str) and _PLAIN.fullmatch(given) else secrets.token_hex(8)


def client_of(context: Context) -> str:
    """The client's address without its port, "ipv4:127.0.0.1"; a call made within the process has none."""
    peer: str = context.peer() or ""
    return peer.rpartition(":")[0] if peer.startswith("ip") else peer


def deadline_of(context: Context) -> float | None:
    """The call's deadline on `time.monotonic`'s clock, None if it has none."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining
