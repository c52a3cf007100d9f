"""Overload: a server that is asked for several times what it can do; `python -m benchmarks.overload BUNDLE`.

Requests come at a fixed rate, whether or not those before them are answered, as from many clients who know nothing of
each other. Then once more, and SIGTERM in the middle.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
import uvloop

from askance.calibration.progress import say
from askance.errors import AskanceError
from askance.output import console, write_json
from askance.service.client_messages import request_of
from askance.service.launch import Serving, started
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.askance.v1 import screening_pb2_grpc
from benchmarks.load import connection, percentile, resident

CONNECTIONS = 8
MAX_BATCH = 32  # of the server
TICK = 0.002  # seconds between looks at what is due
PATIENCE = 120.0  # seconds that a request may take
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Answer:
    """One request's outcome.

    Attributes:
        code: gRPC status.
        details: of an error, its first words.
        seconds: from the request to the answer.
        own: whether an answer was this request's.
        when: it came, on `time.perf_counter`'s clock.
    """

    code: str
    details: str
    seconds: float
    own: bool
    when: float


@dataclass(frozen=True)
class Overload:
    """A server under too much load.

    Attributes:
        capacity: images a second with as many clients as the queue holds.
        unloaded_ms: {"p50", "p99"} of one client.
        offered: requests a second.
        seconds: of overload.
        codes: {gRPC status: how many}.
        foreign: answers to another request.
        accepted_ms, refused_ms: {"p50", "p99"} of OK, and of RESOURCE_EXHAUSTED.
        queue_bound_ms: what a full queue and the batch before it take at the rate of the accepted ones, on average and
            in the slowest second.
        memory_mb: resident, at tenths of the time.
        drained: {gRPC status and words: how many} of the run with SIGTERM.
        exit_code: of that run.
    """

    capacity: float
    unloaded_ms: dict[str, float]
    offered: float
    seconds: float
    codes: dict[str, int]
    foreign: int
    accepted_ms: dict[str, float]
    refused_ms: dict[str, float]
    queue_bound_ms: dict[str, float]
    memory_mb: list[int]
    drained: dict[str, int]
    exit_code: int


@contextmanager
def server(bundle: Path, settings: str) -> Iterator[tuple[subprocess.Popen[str], Serving]]:
    """A server process of its own; the block must end it, or it is killed."""
    with tempfile.TemporaryDirectory(prefix="askance-overload-") as folder:
        file = Path(folder) / "server.toml"
        file.write_text(f"port = 0\nmetrics_port = 0\n{settings}\n[log]\nlevel = 'error'\n")
        with started(["-m", "askance", "serve", str(bundle), "--config", str(file)]) as running:
            yield running


class Crowd:
    """Clients that send whether or not they are answered.

    Args:
        stubs: of the connections, used in turn.
        requests: the images, used in turn.
    """

    def __init__(self, stubs: Sequence[Any], requests: Sequence[pb.ScreenRequest]) -> None:
        self._stubs = itertools.cycle(stubs)
        self._requests = itertools.cycle(requests)
        self._number = itertools.count()

    async def ask(self) -> Answer:
        """Send one request, and wait."""
        request, name = pb.ScreenRequest(), str(next(self._number))
        request.CopyFrom(next(self._requests))
        request.request_id = name
        start = time.perf_counter()
        try:
            response = await next(self._stubs).Screen(request, timeout=PATIENCE)
        except grpc.aio.AioRpcError as error:
            words = (error.details() or "").split(":")[0][:60]
            end = time.perf_counter()
            return Answer(error.code().name, words, end - start, True, end)
        end = time.perf_counter()
        return Answer("OK", "", end - start, response.request_id == name, end)

    async def one_by_one(self, clients: int, seconds: float) -> list[Answer]:
        """Some clients, each with one request under way."""
        end = time.perf_counter() + seconds

        async def client() -> list[Answer]:
            answers = []
            while time.perf_counter() < end:
                answers.append(await self.ask())
            return answers

        return list(itertools.chain.from_iterable(await asyncio.gather(*(client() for _ in range(clients)))))

    async def at_a_rate(self, rate: float, seconds: float, tick: Callable[[float], None]) -> list[Answer]:
        """`rate` requests a second; `tick` is called now and then with the seconds passed."""
        asked: list[asyncio.Task[Answer]] = []
        start = time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            while len(asked) < rate * passed:
                asked.append(asyncio.create_task(self.ask()))
            tick(passed)
            await asyncio.sleep(TICK)
        return await asyncio.gather(*asked)


async def measure(bundle: Path, images: Sequence[Any], *, factor: float, seconds: float, queue_size: int) -> Overload:
    """Overload a server that serves `bundle`, then drain it.

    Args:
        bundle: on disk.
        images: uint8 [C, H, W], of the classifier's shape.
        factor: requests a second, in units of what the server can do.
        seconds: of overload; a fifth of that around SIGTERM.
        queue_size: of the server.

    Raises:
        AskanceError: the server does not start.
    """
    async with AsyncExitStack() as stack:
        settings = f"[limits]\nqueue_size = {queue_size}\n[inference]\nmax_batch = {MAX_BATCH}"
        process, serving = stack.enter_context(server(bundle, settings))
        channels = [await stack.enter_async_context(connection(serving.target)) for _ in range(CONNECTIONS)]
        stubs = [screening_pb2_grpc.ScreeningStub(channel) for channel in channels]  # type: ignore[no-untyped-call]
        crowd = Crowd(stubs, [request_of(image) for image in images])
        await crowd.one_by_one(queue_size // 2, 2.0)  # warm
        unloaded = await crowd.one_by_one(1, 5.0)
        busy = await crowd.one_by_one(queue_size // 2, 5.0)
        capacity = len(busy) / 5.0
        say(f"capacity {capacity:.0f} images a second; {factor * capacity:.0f} a second for {seconds:.0f} s")
        memory: list[int] = []

        def remember(passed: float) -> None:
            if len(memory) <= 10 * passed / seconds:
                memory.append(resident(process.pid) // MEBIBYTE)

        start = time.perf_counter()
        answers = await crowd.at_a_rate(factor * capacity, seconds, remember)
        memory.append(resident(process.pid) // MEBIBYTE)
        say("and SIGTERM in the middle")

        def terminate(passed: float) -> None:
            if passed > seconds / 10 and not told.is_set():
                told.set()
                process.send_signal(signal.SIGTERM)

        told = asyncio.Event()
        drained = await crowd.at_a_rate(factor * capacity, seconds / 5, terminate)
        exit_code = await asyncio.to_thread(process.wait, PATIENCE)
    accepted = [answer.seconds for answer in answers if answer.code == "OK"]
    by_second = Counter(int(answer.when - start) for answer in answers if answer.code == "OK")
    rates = {"mean": len(accepted) / seconds, "slowest": min(by_second[second] for second in range(1, int(seconds)))}
    return Overload(
        capacity=capacity,
        unloaded_ms=_percentiles([answer.seconds for answer in unloaded]),
        offered=len(answers) / seconds,
        seconds=seconds,
        codes=dict(Counter(answer.code for answer in answers)),
        foreign=sum(not answer.own for answer in (*answers, *drained)),
        accepted_ms=_percentiles(accepted),
        refused_ms=_percentiles([a.seconds for a in answers if a.code == "RESOURCE_EXHAUSTED"]),
        queue_bound_ms={name: 1000 * (queue_size + MAX_BATCH) / rate for name, rate in rates.items()},
        memory_mb=memory,
        drained=dict(Counter(" ".join((answer.code, answer.details)).strip() for answer in drained)),
        exit_code=exit_code,
    )


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(1000 * one for one in seconds)
    return {name: percentile(ordered, share) for name, share in (("p50", 0.5), ("p99", 0.99)) if ordered}


def main(
    bundle: Annotated[Path, typer.Argument(help="A bundle.")],
    source: Annotated[str, typer.Option(help="Images of its classifier's shape.")] = "sklearn:digits",
    factor: Annotated[float, typer.Option(help="Load, in units of what the server can do.")] = 4.0,
    seconds: Annotated[float, typer.Option(help="Of overload.")] = 60.0,
    queue_size: Annotated[int, typer.Option(help="Of the server.")] = 64,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write JSON.")] = None,
) -> None:
    """Overload a server, then stop it under load."""
    from askance.calibration.sources import load_source

    try:
        images = list(load_source(source).x[:200].numpy())
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(measure(bundle, images, factor=factor, seconds=seconds, queue_size=queue_size))
    except AskanceError as error:
        say(f"overload: {error}")
        raise typer.Exit(2) from None
    console.print(
        f"capacity: {found.capacity:.0f} images a second; offered: {found.offered:.0f} for {found.seconds:.0f} s"
    )
    console.print("answers: " + ", ".join(f"{code} {count}" for code, count in sorted(found.codes.items())))
    console.print(f"answers to another request: {found.foreign}")
    for name, figures in (
        ("unloaded", found.unloaded_ms),
        ("accepted", found.accepted_ms),
        ("refused", found.refused_ms),
    ):
        console.print(f"{name}: " + ", ".join(f"{share} {value:.1f} ms" for share, value in figures.items()))
    for name, bound in found.queue_bound_ms.items():
        ratio = found.accepted_ms["p99"] / (3 * found.unloaded_ms["p99"] + bound)
        console.print(
            f"accepted p99 / (3 x unloaded p99 + queue bound {bound:.0f} ms, at the {name} rate): {ratio:.2f}"
        )
    console.print("resident memory, MiB: " + " ".join(map(str, found.memory_mb)))
    console.print(f"with SIGTERM: exit code {found.exit_code}")
    for what, count in sorted(found.drained.items()):
        console.print(f"  {what}: {count}")
    write_json(json_file, asdict(found))


if __name__ == "__main__":
    typer.run(main)
