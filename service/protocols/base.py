"""The contract of a protocol: what it is made of, which methods it has, and how it is started and stopped."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import grpc

from askance.service.config import ServerConfig
from askance.service.guard.admission import Admission, Kind
from askance.service.guard.reception import Reception
from askance.service.observability.metrics import Metrics
from askance.service.observability.requests import RequestLog
from askance.service.observability.totals import Totals
from askance.service.runtime.repository import ModelRepository
from askance.service.runtime.screener import Screener


@dataclass(frozen=True)
class Parts:
    """What a protocol is made of.

    Attributes:
        config: the settings.
        admission: what each of its calls passes.
        reception: takes in their messages.
        metrics: gets the stages.
        request_log: keeps the messages of streams, which Admission does not see one by one.
        repository: the versions that answer.
        screener: screens images.
        reload: loads what is served anew.
        unload: lets go of a version that is not the default one.
        totals: what the server has done so far.
    """

    config: ServerConfig
    admission: Admission
    reception: Reception
    metrics: Metrics
    request_log: RequestLog
    repository: ModelRepository
    screener: Screener
    reload: Callable[[], Awaitable[object]]
    unload: Callable[[str], Awaitable[None]]
    totals: Callable[[], Awaitable[Totals]]


class Protocol:
    """How clients ask. It raises StatusErrors of its own protocol's making nowhere but at its edge.

    Args:
        parts: what it is made of.
    """

    name: ClassVar[str]
    """In PROTOCOLS, and in the line that a server prints when it serves."""
    methods: ClassVar[Mapping[str, Kind]]
    """What can be called, by the names that the metrics have; no two protocols share one."""
    service: ClassVar[str | None] = None
    """The full name of its gRPC service; None where it is none."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def add_to(self, server: grpc.aio.Server) -> None:
        """Add its servicer to the gRPC server; one that has a port of its own adds nothing."""

    async def start(self) -> int | None:
        """Listen on a port of its own, and return it; None where it has none.

        Raises:
            AskanceError: the port is in use; the message names the setting.
        """
        return None

    async def stop(self) -> None:
        """Stop listening, calls under way finished."""
