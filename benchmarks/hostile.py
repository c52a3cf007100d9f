"""Hostile: what a good client and the server's memory notice of the worst messages; `python -m benchmarks.hostile`.

For each message, sent again and again by another process: the good client's p99 beside it, as a ratio of its quiet one,
and the most memory that the server held.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer

from askance.calibration.progress import say
from askance.calibration.sources import load_source
from askance.errors import AskanceError
from askance.output import console, write_json
from askance.service.client_messages import request_of
from askance.service.launch import started
from benchmarks.load import SCREEN, connection, percentile, resident
from benchmarks.worst_messages import Worst, worst_messages

SIZE = (16 << 20) - 1024
QUIET_SECONDS = 5.0
PAUSE = 0.002  # seconds between two requests of the good client


@dataclass(frozen=True)
class Beside:
    """A good client beside one message.

    Attributes:
        message: its name.
        p99_ratio: of the good client's p99 to its quiet one.
        memory_ratio: of the most memory that the server held to what it may: 1.25 times its quiet value and 256 MiB.
        failed: requests of the good client that were not answered.
    """

    message: str
    p99_ratio: float
    memory_ratio: float
    failed: int


def attack(target: str, message: Worst, count: int, at_a_time: int) -> None:
    """Send a message `count` times, on some connections."""

    async def main() -> None:
        left = iter(range(count))

        async def client() -> None:
            channel: Any = connection(target)
            for _ in left:
                call = channel.stream_stream(message.path)(iter([message.content]), timeout=60)
                try:
                    async for _answer in call:
                        call.cancel()
                        break
                except grpc.aio.AioRpcError:
                    pass
            await channel.close(None)

        await asyncio.gather(*(client() for _ in range(at_a_time)))

    asyncio.run(main())


async def good_client(target: str, request: bytes, pid: int, goes_on: Callable[[], bool]) -> tuple[float, int, int]:
    """One request after the other: p99 in seconds, the most memory of the server, requests that failed."""
    seconds, most, failed = [], 0, 0
    channel: Any = connection(target)
    call = channel.unary_unary(SCREEN)
    while goes_on():
        start = time.perf_counter()
        try:
            await call(request, timeout=60)
        except grpc.aio.AioRpcError:
            failed += 1
        seconds.append(time.perf_counter() - start)
        most = max(most, resident(pid))
        await asyncio.sleep(PAUSE)
    await channel.close(None)
    return percentile(sorted(seconds), 0.99), most, failed


def measure(bundle: Path, source: str, count: int, at_a_time: int, names: str) -> list[Beside]:
    """Measure beside each of the messages whose name holds `names`."""
    request = request_of(load_source(source).x[0].numpy()).SerializeToString()
    found = []
    spawn = multiprocessing.get_context("spawn")
    arguments = ["-m", "askance", "serve", str(bundle), "--port", "0", "--metrics-port", "0"]
    with started(arguments) as (process, serving):

        def beside(goes_on: Callable[[], bool]) -> tuple[float, int, int]:
            return asyncio.run(good_client(serving.target, request, process.pid, goes_on))

        for _ in range(2):  # the first is a warm-up
            end = time.monotonic() + QUIET_SECONDS
            quiet, memory, _ = beside(lambda end=end: time.monotonic() < end)  # type: ignore[misc]
        console.print(f"quiet: p99 {1000 * quiet:.1f} ms, {memory >> 20} MiB")
        for message in worst_messages(SIZE, {SCREEN: request}):
            if names not in message.name:
                continue
            attacker = spawn.Process(target=attack, args=(serving.target, message, count, at_a_time))
            attacker.start()
            p99, most, failed = beside(attacker.is_alive)
            found.append(Beside(message.name, p99 / quiet, most / (1.25 * memory + (256 << 20)), failed))
            one = found[-1]
            console.print(
                f"{one.message}: p99 x {one.p99_ratio:.1f}, memory {one.memory_ratio:.2f}, {failed} failed",
                soft_wrap=True,
            )
        process.terminate()
    return found


def main(
    bundle: Annotated[Path, typer.Argument(help="A bundle.")],
    source: Annotated[str, typer.Option(help="Images of its classifier's shape.")] = "sklearn:digits",
    count: Annotated[int, typer.Option(help="How often each message is sent.")] = 100,
    at_a_time: Annotated[int, typer.Option(help="Connections that send it.")] = 1,
    names: Annotated[str, typer.Option(help="Only messages with this in their name.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write JSON.")] = None,
) -> None:
    """Say what a good client and memory notice of the worst messages."""
    try:
        found = measure(bundle, source, count, at_a_time, names)
    except AskanceError as error:
        say(f"hostile: {error}")
        raise typer.Exit(2) from None
    write_json(json_file, {"messages": [asdict(one) for one in found]})


if __name__ == "__main__":
    typer.run(main)
