"""No-op: a server of the same protocol that answers a fixed response; run as `python -m benchmarks.noop FILE`."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import uvloop

from askance.service.launch import Serving
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.askance.v1 import screening_pb2_grpc


class FixedServicer(screening_pb2_grpc.ScreeningServicer):
    """Answers every Screen alike.

    Args:
        response: the answer.
    """

    def __init__(self, response: pb.ScreenResponse) -> None:
        self._response = response

    async def Screen(  # noqa: N802
        self,
        request: pb.ScreenRequest,  # noqa: ARG002
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002
    ) -> pb.ScreenResponse:
        """The fixed response."""
        return self._response


async def serve(response: pb.ScreenResponse) -> None:
    """Serve on a free loopback port, say where on stdout, and stop on SIGTERM."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    screening_pb2_grpc.add_ScreeningServicer_to_server(FixedServicer(response), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(Serving("0" * 64, "127.0.0.1", port, 0), flush=True)
    await stopping.wait()
    await server.stop(1.0)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(pb.ScreenResponse.FromString(Path(sys.argv[1]).read_bytes())))
