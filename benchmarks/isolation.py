"""Isolation: what clients that misbehave do to the others; `python -m benchmarks.isolation --target HOST:PORT`.

Good clients ask one image after the other, first by themselves, then beside clients that send NaN, damaged files, wrong
shapes, and batches with a bad image, that cancel, and that wait for too short a time. The server must disclose scores.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import typer
import uvloop
from numpy.typing import NDArray

from askance.calibration.progress import say
from askance.errors import AskanceError
from askance.output import console, write_json
from askance.service.client_messages import request_of
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.askance.v1 import screening_pb2_grpc
from askance.service.pb.inference import inference_pb2 as oip
from askance.service.pb.inference import inference_pb2_grpc
from benchmarks.load import connection, percentile

Pixels = NDArray[np.uint8]  # [C, H, W]
TOLERANCE = 1e-5
CLIENTS = 8  # of each kind
TOO_SHORT = (0.0005, 0.001, 0.002, 0.004)  # seconds, of deadlines and until a client cancels
ALONE = 60.0  # seconds that a good request may take
BAD = ("nan", "damaged", "shape", "batch", "cancel", "timeout")


@dataclass(frozen=True)
class Isolation:
    """What became of good requests beside bad ones.

    Attributes:
        good, bad: requests sent in company.
        codes: {kind of bad request: {gRPC status: how many}}.
        different_verdicts: good answers whose class or verdict is not that of the image alone.
        largest_difference: between any score or p-value and that of the image alone, relative where it is above 1.
        different_scores: answers in which it is above 1e-5.
        alone_ms, beside_ms: {"p50", "p99"} of good requests without and with bad ones, in milliseconds.
        ratio: beside / alone.
    """

    good: int
    bad: int
    codes: dict[str, dict[str, int]]
    different_verdicts: int
    largest_difference: float
    different_scores: int
    alone_ms: dict[str, float]
    beside_ms: dict[str, float]
    ratio: dict[str, float]


class Bystander:
    """Good clients: they compare each answer with what its image got when nobody else was there.

    Args:
        stub: of the service.
        images: that they send.
    """

    def __init__(self, stub: Any, images: Sequence[Pixels]) -> None:
        self._stub = stub
        self._requests = [request_of(image) for image in images]
        self._alone: list[pb.ScreenResponse] = []
        self.largest_difference = 0.0
        self.different_scores = 0
        self.different_verdicts = 0

    async def learn(self) -> None:
        """Send each image by itself."""
        self._alone = [await self._stub.Screen(request, timeout=ALONE) for request in self._requests]

    async def ask(self, number: int, requests: int, turn: asyncio.Semaphore) -> list[float]:
        """Send some images one after the other, each followed by another's `turn`; the latencies in seconds."""
        latencies = []
        for i in range(requests):
            which = (number * 31 + i) % len(self._requests)
            turn.release()
            start = time.perf_counter()
            answer = await self._stub.Screen(self._requests[which], timeout=ALONE)
            latencies.append(time.perf_counter() - start)
            self.compare(answer, self._alone[which])
        return latencies

    def compare(self, answer: pb.ScreenResponse, alone: pb.ScreenResponse) -> None:
        """Take note of how far an answer is from what it should be."""
        same = (answer.verdict, answer.prediction.index) == (alone.verdict, alone.prediction.index)
        self.different_verdicts += not same
        self._compare(_numbers(answer), _numbers(alone))

    def compare_mate(self, which: int, batch: oip.ModelInferResponse) -> None:
        """The same for image `which`, the second of a batch whose first is bad; its outputs are p_value and score."""
        alone = self._alone[which]
        found = [np.frombuffer(raw, "<f8")[1] for raw in batch.raw_output_contents]
        self._compare(found, [alone.p_value, alone.score])

    def _compare(self, found: Sequence[float], expected: Sequence[float]) -> None:
        difference = max(abs(one - other) / max(1.0, abs(other)) for one, other in zip(found, expected, strict=True))
        self.largest_difference = max(self.largest_difference, difference)
        self.different_scores += int(difference > TOLERANCE)


def _numbers(answer: pb.ScreenResponse) -> list[float]:
    words = [(word.score, word.p_value) for word in answer.detectors]
    return [answer.score, answer.p_value, *itertools.chain.from_iterable(words), *answer.probabilities]


class Nuisance:
    """Clients that misbehave, each in its way.

    Args:
        screening, inference: stubs of both services.
        model: the classifier's name.
        images: that they start from.
        bystander: knows what is to be said of them.
    """

    def __init__(
        self, screening: Any, inference: Any, model: str, images: Sequence[Pixels], bystander: Bystander
    ) -> None:
        self._screening = screening
        self._inference = inference
        self._model = model
        self._images = images
        self._bystander = bystander
        self.codes: dict[str, Counter[str]] = {kind: Counter() for kind in BAD}

    async def bother(self, number: int, requests: int, turn: asyncio.Semaphore) -> None:
        """Send some bad requests one after the other, each when it is its turn: a mixture, not a flood."""
        for i in range(number, number + requests):
            await turn.acquire()
            kind = BAD[i % len(BAD)]
            try:
                await self._send(kind, i % len(self._images), TOO_SHORT[i // len(BAD) % len(TOO_SHORT)])
                code = "OK"
            except grpc.aio.AioRpcError as error:
                code = error.code().name
            except asyncio.CancelledError:
                code = "CANCELLED"
            self.codes[kind][code] += 1

    async def _send(self, kind: str, which: int, seconds: float) -> None:
        image = self._images[which]
        floats = (image / np.float32(255)).astype(np.float32)
        floats[(0,) * floats.ndim] = np.nan
        if kind == "nan":
            await self._screening.Screen(request_of(floats))
        elif kind == "damaged":
            await self._screening.Screen(pb.ScreenRequest(encoded=b"\x89PNG\r\n\x1a\n" + image.tobytes()[:50]))
        elif kind == "shape":
            await self._screening.Screen(request_of(image[:, :-1]))
        elif kind == "batch":
            batch = np.stack([floats, image / np.float32(255)]).astype("<f4")
            tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=batch.shape)
            request = oip.ModelInferRequest(
                model_name=self._model, inputs=[tensor], raw_input_contents=[batch.tobytes()]
            )
            for name in ("p_value", "score"):
                request.outputs.add(name=name)
            self._bystander.compare_mate(which, await self._inference.ModelInfer(request))
        elif kind == "cancel":
            call = self._screening.Screen(request_of(image))
            asyncio.get_running_loop().call_later(seconds, call.cancel)
            await call
        else:
            await self._screening.Screen(request_of(image), timeout=seconds)


async def measure(target: str, images: Sequence[Pixels], requests: int = 1000, rounds: int = 5) -> Isolation:
    """Send about `requests` mixed requests in some rounds, and in between the good ones by themselves.

    Args:
        target: HOST:PORT of a server that discloses scores.
        images: uint8 [C, H, W], of the classifier's shape.
        requests: good ones, of which there are half, and bad ones.
        rounds: how often both are measured in turn.

    Raises:
        grpc.aio.AioRpcError: a good request failed.
    """
    each = max(1, requests // (2 * CLIENTS * rounds))
    async with connection(target) as good, connection(target) as bad:
        screening = screening_pb2_grpc.ScreeningStub(good)  # type: ignore[no-untyped-call]
        model = (await screening.Describe(pb.DescribeRequest())).classifier
        bystander = Bystander(screening, images)
        nuisance = Nuisance(
            screening_pb2_grpc.ScreeningStub(bad),  # type: ignore[no-untyped-call]
            inference_pb2_grpc.GRPCInferenceServiceStub(bad),  # type: ignore[no-untyped-call]
            model,
            images,
            bystander,
        )
        await bystander.learn()
        alone: list[float] = []
        beside: list[float] = []
        for _ in range(rounds):
            alone += await _all(bystander, each, asyncio.Semaphore(0))
            turn = asyncio.Semaphore(0)
            nuisances = asyncio.gather(*(nuisance.bother(number, each, turn) for number in range(CLIENTS)))
            beside += await _all(bystander, each, turn)
            await nuisances
    figures = [
        {name: 1000 * percentile(sorted(seconds), share) for name, share in (("p50", 0.5), ("p99", 0.99))}
        for seconds in (alone, beside)
    ]
    return Isolation(
        good=len(beside),
        bad=sum(codes.total() for codes in nuisance.codes.values()),
        codes={kind: dict(codes) for kind, codes in nuisance.codes.items()},
        different_verdicts=bystander.different_verdicts,
        largest_difference=bystander.largest_difference,
        different_scores=bystander.different_scores,
        alone_ms=figures[0],
        beside_ms=figures[1],
        ratio={name: figures[1][name] / figures[0][name] for name in figures[0]},
    )


async def _all(bystander: Bystander, each: int, turn: asyncio.Semaphore) -> list[float]:
    latencies = await asyncio.gather(*(bystander.ask(number, each, turn) for number in range(CLIENTS)))
    return list(itertools.chain.from_iterable(latencies))


def main(
    target: Annotated[str, typer.Option(metavar="HOST:PORT", help="A server that runs with --disclose.")],
    source: Annotated[str, typer.Option(help="Images of the classifier's shape.")] = "sklearn:digits",
    requests: Annotated[int, typer.Option(min=100, help="Good and bad ones together.")] = 1000,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write JSON.")] = None,
) -> None:
    """Measure what clients that misbehave do to the others."""
    from askance.calibration.sources import load_source

    # Altered a little: an image of the calibration split ties with itself there, and float32's last digit, which
    # depends on the batch, then moves its rank.
    try:
        images = load_source(source).x[:200].numpy().astype(int)
    except AskanceError as error:
        say(f"isolation: {error}")
        raise typer.Exit(2) from None
    images += np.random.default_rng(0).integers(-6, 7, images.shape)
    pixels = list(images.clip(0, 255).astype(np.uint8))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(measure(target, pixels, requests))
    console.print(f"{found.good} good requests beside {found.bad} bad ones")
    for kind, codes in found.codes.items():
        console.print(f"  {kind}: " + ", ".join(f"{code} {count}" for code, count in sorted(codes.items())))
    console.print(f"verdicts that differ from the image's alone: {found.different_verdicts}")
    console.print(
        f"largest difference of a score or p-value: {found.largest_difference:.2g}; "
        f"answers in which it is above {TOLERANCE:g}: {found.different_scores}"
    )
    for name, ratio in found.ratio.items():
        before, after = found.alone_ms[name], found.beside_ms[name]
        console.print(
            f"{name} of good requests: {before:.2f} ms alone, {after:.2f} ms beside bad ones, ratio {ratio:.2f}"
        )
    write_json(json_file, asdict(found))


if __name__ == "__main__":
    typer.run(main)
