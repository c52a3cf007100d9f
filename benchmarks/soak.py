"""Soak: a server left on under everything at once; `python -m benchmarks.soak BUNDLE`, or `make soak`.

Good, wrong, slow, cancelled and oversized requests, over gRPC and HTTP, while bundles take each other's place and a
candidate looks on. At the end: did memory or descriptors grow, was anything INTERNAL, was each verdict the offline one?
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import grpc
import numpy as np
import torch
import typer
from numpy.typing import NDArray

import askance
from askance.answers import Answer
from askance.calibration.progress import say
from askance.calibration.sources import load_source
from askance.errors import AskanceError
from askance.output import console, write_json
from askance.service.client_messages import request_of
from askance.service.guard.access import new_token
from askance.service.launch import Serving, started
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.askance.v1 import screening_pb2_grpc
from benchmarks.load import connection, resident
from benchmarks.worst_messages import worst_messages

CLIENTS = 4  # of each kind of request
WORST_BYTES = 1 << 20
RELOAD_SECONDS = 5.0
SAMPLES = 60  # of memory and descriptors
QUIET_SHARE = 1 / 6  # of the time, at first, in which a server still takes what it will always need
SETTINGS = """
port = 0
metrics_port = 0
rest_port = 0
[rollout]
candidate = "candidate"
keep_versions = 1
[log]
level = "error"
[[access.clients]]
name = "soak"
token_sha256 = "{digest}"
roles = ["predict", "scores", "explanations", "admin"]
"""
INTERNAL = {"INTERNAL", "UNKNOWN", "HTTP 500"}
OWN = "Internal error from Core"  # the client library's, where a call is refused while it is sent


@dataclass(frozen=True)
class Soak:
    """What a soak found.

    Attributes:
        minutes: of it.
        codes: {kind of request and status: how many}.
        internal: how many ended as INTERNAL or UNKNOWN, which is our fault.
        verdicts, wrong: answers compared with the offline ones, and how many were others.
        reloads: bundles that took another's place.
        memory_mb, descriptors: resident memory and open files, at even times.
        memory_slope, descriptor_slope: their growth an hour, after the first sixth of the time.
    """

    minutes: float
    codes: dict[str, int]
    internal: int
    verdicts: int
    wrong: int
    reloads: int
    memory_mb: list[int]
    descriptors: list[int]
    memory_slope: float
    descriptor_slope: float


class Traffic:
    """Requests of all kinds to one server.

    Args:
        serving: where it is.
        images: uint8 or float32 [N, C, H, W], of the classifier's shape.
        expected: what is said of each image offline.
        token: of a client that may do everything.
    """

    def __init__(self, serving: Serving, images: NDArray[Any], expected: Sequence[Answer], token: str) -> None:
        self._channel = connection(serving.target)
        self._stub: Any = screening_pb2_grpc.ScreeningStub(self._channel)  # type: ignore[no-untyped-call]
        self._rest = f"http://127.0.0.1:{serving.rest_port}/v2"
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._images = images
        self._expected = expected
        self._random = random.Random(0)
        self._worst = list(worst_messages(WORST_BYTES, {}))
        self.codes: Counter[str] = Counter()
        self.verdicts = self.wrong = 0

    async def good(self) -> None:
        """One image, whose verdict is compared."""
        i = self._random.randrange(len(self._images))
        answer = await self._stub.Screen(request_of(self._images[i]), metadata=self._metadata, timeout=60)
        self.verdicts += 1
        self.wrong += pb.Verdict.Name(answer.verdict) != str(self._expected[i].verdict)

    async def stream(self) -> None:
        """Some images on one stream."""
        requests = [request_of(self._images[self._random.randrange(len(self._images))]) for _ in range(16)]
        async for answer in self._stub.ScreenStream(iter(requests), metadata=self._metadata, timeout=60):
            self.codes[f"stream item {answer.WhichOneof('outcome')}"] += 1

    async def worst(self) -> None:
        """Whatever costs a server most."""
        one = self._random.choice(self._worst)
        if one.path.endswith(("Watch", "RepositoryModelLoad")):
            return
        channel: Any = self._channel
        async for _ in channel.stream_stream(one.path)(iter([one.content]), metadata=self._metadata, timeout=60):
            break

    async def oversized(self) -> None:
        """A message larger than any may be."""
        await self._stub.Screen(pb.ScreenRequest(encoded=bytes(17 << 20)), metadata=self._metadata, timeout=60)

    async def cancelled(self) -> None:
        """A request that its client gives up."""
        call = self._stub.Screen(request_of(self._images[0]), metadata=self._metadata, timeout=60)
        await asyncio.sleep(self._random.random() / 200)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call

    async def slow(self) -> None:
        """A client that takes its time between the images of a stream."""
        call = self._stub.ScreenStream(metadata=self._metadata, timeout=60)
        for _ in range(3):
            await call.write(request_of(self._images[0]))
            await asyncio.sleep(0.3)
            await call.read()
        await call.done_writing()

    async def over_http(self) -> None:
        """A request over HTTP that is good, or no JSON, or too long."""
        body = self._random.choice((b'{"inputs":[]}', b"{", b"[" * (5 << 20), b'{"inputs":[{"name":"image"}]}'))
        async with aiohttp.ClientSession() as http, http.post(f"{self._rest}/models/m/infer", data=body) as answer:
            await answer.read()
            self.codes[f"HTTP {answer.status}"] += 1

    async def repeat(self, kind: Callable[[], Awaitable[None]], name: str, end: float) -> None:
        """One kind of request, again and again."""
        while time.monotonic() < end:
            try:
                await kind()
                self.codes[f"{name} OK"] += 1
            except grpc.aio.AioRpcError as error:
                if error.details() != OWN:
                    self.codes[f"{name} {error.code().name}"] += 1
            await asyncio.sleep(self._random.random() / 20)

    async def run(self, seconds: float) -> None:
        """All kinds at once."""
        end = time.monotonic() + seconds
        kinds = [self.good, self.stream, self.worst, self.oversized, self.cancelled, self.slow, self.over_http]
        await asyncio.gather(
            *(self.repeat(kind, kind.__name__, end) for kind in kinds for _ in range(CLIENTS)),
        )
        await self._channel.close(None)


class Watch:
    """Memory and descriptors of a process, and bundles that take each other's place meanwhile.

    Args:
        process: the server.
        link: what it serves: a link to one of two copies of a bundle.
        copies: these.
    """

    def __init__(self, process: subprocess.Popen[str], link: Path, copies: Sequence[Path]) -> None:
        self._process = process
        self._link = link
        self._copies = copies
        self.memory: list[float] = []
        self.descriptors: list[float] = []
        self.reloads = 0

    async def run(self, seconds: float) -> None:
        """Look now and then; have the other copy served every few seconds."""
        start, looked = time.monotonic(), 0
        while (passed := time.monotonic() - start) < seconds:
            if passed >= looked * seconds / SAMPLES:
                looked += 1
                self.memory.append(resident(self._process.pid))
                self.descriptors.append(len(list(Path(f"/proc/{self._process.pid}/fd").iterdir())))
            await asyncio.sleep(min(RELOAD_SECONDS, seconds / SAMPLES))
            self.reloads += 1
            following = self._link.with_name("following")
            following.symlink_to(self._copies[self.reloads % 2])
            following.replace(self._link)
            self._process.send_signal(signal.SIGHUP)


def measure(bundle: Path, source: str, minutes: float) -> Soak:
    """Soak a server of `bundle` with images of `source` for some minutes.

    Raises:
        AskanceError: the bundle, or the images, cannot be used.
    """
    with askance.open(bundle) as screened:
        images = load_source(source).x[:500].numpy()
        expected = [answer for answer in screened(images) if isinstance(answer, Answer)]
    token, digest = new_token()
    with tempfile.TemporaryDirectory(prefix="askance-soak-") as name:
        folder = Path(name)
        copies = [folder / "one", folder / "other"]
        for copy in (*copies, folder / "candidate"):
            shutil.copytree(bundle, copy)
        (folder / "served").symlink_to(copies[0])
        (folder / "server.toml").write_text(SETTINGS.format(digest=digest))
        arguments = ["-m", "askance", "serve", str(folder / "served"), "--config", str(folder / "server.toml")]
        with started(arguments) as (process, serving):
            watch = Watch(process, folder / "served", copies)

            async def main() -> Traffic:
                traffic = Traffic(serving, images, expected, token)
                await asyncio.gather(traffic.run(60 * minutes), watch.run(60 * minutes))
                return traffic

            traffic = asyncio.run(main())
            process.terminate()
            process.wait(60)
    hours = minutes / 60
    return Soak(
        minutes,
        dict(sorted(traffic.codes.items())),
        sum(count for name, count in traffic.codes.items() if any(name.endswith(code) for code in INTERNAL)),
        traffic.verdicts,
        traffic.wrong,
        watch.reloads,
        [round(size / 1e6) for size in watch.memory],
        [round(count) for count in watch.descriptors],
        _slope(watch.memory, hours) / 1e6,
        _slope(watch.descriptors, hours),
    )


def _slope(values: Sequence[float], hours: float) -> float:
    """Growth an hour, by least squares, of what is looked at at even times; the first of them left out."""
    later = torch.tensor(values[round(QUIET_SHARE * len(values)) :], dtype=torch.float64).numpy()
    times = np.arange(len(later)) * hours / len(values)
    return float(np.polyfit(times, later, 1)[0])


def main(
    bundle: Annotated[Path, typer.Argument(help="A bundle.")],
    source: Annotated[str, typer.Option(help="Images of its classifier's shape.")] = "sklearn:digits",
    minutes: Annotated[float, typer.Option(help="Of soaking.")] = 30.0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write JSON.")] = None,
) -> None:
    """Leave a server on under everything at once, and say what became of it."""
    try:
        found = measure(bundle, source, minutes)
    except AskanceError as error:
        say(f"soak: {error}")
        raise typer.Exit(2) from None
    for name, value in asdict(found).items():
        console.print(f"{name}: {value}", soft_wrap=True, markup=False, highlight=False)
    write_json(json_file, asdict(found))
    if found.internal or found.wrong:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
