"""Health: grpc.health.v1, for the whole server and for each of its services.

grpcio's own servicer aborts a check of a name that nobody has, and gRPC keeps what such a call held until a garbage
collection; and one watcher that leaves takes the others' notices with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

from askance.service.errors import not_found

Context = grpc.aio.ServicerContext[Any, Any]


class Health(health_pb2_grpc.HealthServicer):
    """Says whether the server serves: at first it does not.

    Args:
        names: the services that may be asked for; "" is the server.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._serving = False
        self._left = False
        self._changed = asyncio.Condition()

    async def set(self, *, serving: bool) -> None:
        """Say from now on whether it serves; once it has left it does not, whatever is said."""
        async with self._changed:
            self._serving = serving and not self._left
            self._changed.notify_all()

    async def leave(self) -> None:
        """It serves no more, for good."""
        self._left = True
        await self.set(serving=False)

    def _status(self, name: str) -> pb.HealthCheckResponse.ServingStatus:
        if name not in self._names:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        return pb.HealthCheckResponse.SERVING if self._serving else pb.HealthCheckResponse.NOT_SERVING

    async def Check(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:  # noqa: ARG002, N802
        """The present state; NOT_FOUND for a name that nobody has."""
        if request.service not in self._names:
            raise not_found("there is no such service")
        return pb.HealthCheckResponse(status=self._status(request.service))

    async def Watch(self, request: pb.HealthCheckRequest, context: Context) -> None:  # noqa: N802
        """The present state, and each that follows."""
        told = None
        async with self._changed:
            while True:
                status = self._status(request.service)
                if status != told:
                    await context.write(pb.HealthCheckResponse(status=status))
                    told = status
                await self._changed.wait()
