"""Load: concurrent clients in a process of their own; run as `python -m benchmarks.load`, a Plan on stdin.

Imports nothing heavy: what loads the servers must not compete with them for more than it needs.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import uvloop

SCREEN = "/askance.v1.Screening/Screen"
TIMEOUT = 30.0  # seconds that one request may take


@dataclass(frozen=True)
class Plan:
    """What to send where.

    Attributes:
        targets: {server: HOST:PORT}, loaded in turn, slice by slice.
        messages: serialized, in hexadecimal; sent in turn.
        clients: connections, each with one request under way.
        rounds: slices on each server; one more before them warms up and is not reported.
        seconds: how long a slice lasts, at most.
        requests: of a slice, at most.
        method: that takes the message; every server has it.
    """

    targets: dict[str, str]
    messages: list[str]
    clients: int
    rounds: int
    seconds: float
    requests: int
    method: str = SCREEN

    @property
    def most_seconds(self) -> float:
        """The longest that the whole plan may take, with some grace for starting."""
        return 60 + (self.rounds + 1) * len(self.targets) * (self.seconds + TIMEOUT)


@dataclass(frozen=True)
class Slice:
    """One server under load for a moment.

    Attributes:
        target: the server's name.
        requests: answered.
        requests_per_second: answered.
        p50_ms, p99_ms: latency in milliseconds.
    """

    target: str
    requests: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of ascending values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def run(plan: Plan) -> list[Slice]:
    """Carry out a plan.

    Raises:
        grpc.aio.AioRpcError: a request failed.
    """
    async with AsyncExitStack() as stack:
        calls = {}
        for name, target in plan.targets.items():
            channels = [await stack.enter_async_context(connection(target)) for _ in range(plan.clients)]
            await asyncio.wait_for(asyncio.gather(*(channel.channel_ready() for channel in channels)), TIMEOUT)
            calls[name] = [channel.unary_unary(plan.method, None, None) for channel in channels]  # bytes both ways
        slices = [await _slice(name, calls[name], plan) for _ in range(plan.rounds + 1) for name in plan.targets]
    return slices[len(plan.targets) :]


def connection(target: str) -> grpc.aio.Channel:
    """A connection of its own."""
    # A pool of its own makes it a connection of its own: gRPC would share one between equal channels.
    return grpc.aio.insecure_channel(
        target, options=[("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    )


async def _slice(name: str, calls: Sequence[Any], plan: Plan) -> Slice:
    messages = itertools.cycle([bytes.fromhex(message) for message in plan.messages])
    latencies: list[float] = []
    sent = 0
    start = time.perf_counter()

    async def client(call: Any) -> None:
        nonlocal sent
        while sent < plan.requests and (before := time.perf_counter()) - start < plan.seconds:
            sent += 1
            await call(next(messages), timeout=TIMEOUT)
            latencies.append(time.perf_counter() - before)

    await asyncio.gather(*(client(call) for call in calls))
    elapsed = time.perf_counter() - start
    ordered = sorted(1000 * latency for latency in latencies)
    return Slice(name, len(ordered), len(ordered) / elapsed, percentile(ordered, 0.5), percentile(ordered, 0.99))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        json.dump([asdict(part) for part in runner.run(run(Plan(**json.load(sys.stdin))))], sys.stdout)
