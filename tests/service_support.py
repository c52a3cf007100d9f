"""What the service's tests share: a tiny screen with real detectors, images as bytes, and a server on free ports."""

from __future__ import annotations

import asyncio
import io
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic.fields import FieldInfo
from torch import Tensor, nn

from askance.answers import Answer
from askance.detectors import (
    Capture,
    Detector,
    LibraryNetwork,
    LibraryNetworkOptions,
    Screen,
    SelfOrganizingMap,
    SelfOrganizingMapOptions,
    Tap,
)
from askance.detectors.publishing import Export, publish
from askance.detectors.reader import TorchReader, read
from askance.errors import ScreenError
from askance.images import Batch
from askance.judgement import Calibration
from askance.screening.preprocessing import Preprocessing
from askance.screening.reading import Observe
from askance.screening.sentinels import Sentinels
from askance.service.call import DISCLOSING
from askance.service.config import ServerConfig
from askance.service.launch import Serving, started
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.askance.v1 import screening_pb2_grpc
from askance.service.runtime.model import LoadedBundle
from askance.service.server import Server

CLASSES = ("ant", "bee", "cat", "dog")
SIDE = 8
AT_ONCE = {"pool_requests": 1, "pool_seconds": 0.0}  # what tells of single requests, for tests that count them
AT_ONCE_TOML = Path(__file__).with_name("at_once.toml")
CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TINY = {"channels": 1, "height": SIDE, "width": SIDE, "mean": (0.5,), "std": (0.25,)}
GREY = Preprocessing.model_validate(TINY)
NO_SENTINELS = Sentinels.none(GREY.shape)
RGB = Preprocessing.model_validate(TINY | {"channels": 3, "mean": (0.5,) * 3, "std": (0.25,) * 3})


class TinyClassifier(nn.Module):
    """Two layers, four classes."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels * SIDE * SIDE, 12)
        self.output = nn.Linear(12, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.output(self.hidden(images.flatten(1)).relu())
        return logits


def build_tiny(factory: str | None, arguments: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """Stands for `classifiers.build_classifier`."""
    assert factory == "tiny"
    classifier = TinyClassifier(**arguments)
    classifier.load_state_dict(dict(weights))
    return classifier.eval()


@cache
def parts(preprocessing: Preprocessing = GREY) -> tuple[nn.Module, dict[str, Detector], Calibration]:
    """A seeded classifier, two detectors fitted on noise, and their calibration."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = TinyClassifier(preprocessing.channels).eval()
    images = torch.rand(700, *preprocessing.shape, generator=generator)
    detectors: dict[str, Detector] = {
        LibraryNetwork.kind: LibraryNetwork(LibraryNetworkOptions(thresholds={"hidden": 0.2, "output": 0.1})),
        SelfOrganizingMap.kind: SelfOrganizingMap(SelfOrganizingMapOptions(map_layers=("hidden",), side=4, epochs=2)),
    }
    with torch.no_grad(), Tap(classifier, ["hidden", "output"], preprocessing.normalize) as tap:
        captures: list[Capture] = [tap(part) for part in images.split([200, 500])]
        for detector in detectors.values():
            detector.fit(cast(Any, captures[:1]))
    readings = read(detectors, captures[1])
    return classifier, detectors, Calibration.fit(readings, readings)


def tiny_screen(preprocessing: Preprocessing = GREY) -> Screen[TorchReader]:
    """A real Screen that takes well under a millisecond."""
    plain = preprocessing.model_copy(update={"resize": "refuse"})
    classifier, detectors, calibration = parts(plain)
    reader = TorchReader(classifier, detectors, preprocessing)
    return Screen(reader, preprocessing, CLASSES, detectors, calibration)


def tiny_served(screen: Screen | None = None) -> LoadedBundle:
    """A LoadedBundle without a bundle on disk."""
    return LoadedBundle(
        "0123456789abcdef" * 4, CREATED, "tiny", tiny_screen() if screen is None else screen, NO_SENTINELS
    )


def publish_tiny(
    path: Path, factory: str | None = "tiny", name: str = "tiny", shift: float = 0.0, export: Export | None = None
) -> str:
    """Publish a real bundle, for `build_tiny` unless another factory is named; return its id.

    Another `shift` of the fused table gives another bundle, with other p-values.
    """
    classifier, detectors, calibration = parts()
    fused = replace(calibration.fused, table=calibration.fused.table + shift)
    calibration = replace(calibration, fused=fused)
    entry = {
        "name": name,
        "factory": factory,
        "arguments": {"channels": 1},
        "layers": ("hidden", "output"),
        "preprocessing": GREY,
        "class_names": CLASSES,
    }
    return publish(
        path,
        classifier=entry,
        weights=classifier.state_dict(),
        detectors=detectors,
        calibration=calibration,
        build=lambda *_: classifier,
        clean=torch.from_numpy(np.stack([noise(seed) for seed in range(40)])),
        attacked=torch.from_numpy(untypical())[None].float() / 255,
        evaluation={},
        summary={},
        provenance={},
        export=export,
    ).id


class Valve(Screen):
    """A tiny Screen that can be held: it records the images it saw, and while shut keeps its caller waiting.

    An image whose first pixel is POISON makes the whole call raise.
    """

    POISON = 0.9876  # no byte / 255 is

    def __init__(self, detectors: Mapping[str, Detector] | None = None) -> None:
        classifier, own, calibration = parts()
        asked = own if detectors is None else detectors
        super().__init__(TorchReader(classifier, asked, GREY), GREY, CLASSES, asked, calibration)
        self.batches: list[list[float]] = []  # the first pixel of each image
        self.opened = threading.Event()
        self.entered = threading.Event()
        self.opened.set()

    def shut(self) -> None:
        """Hold the next call."""
        self.opened.clear()
        self.entered.clear()

    @property
    def seen(self) -> list[float]:
        """The first pixels of all images screened, the warm-up's left out."""
        return [pixel for batch in self.batches[1:] for pixel in batch]

    def __call__(
        self, images: Batch, explain: Sequence[bool] | bool = False, observe: Observe | None = None
    ) -> list[Answer | ScreenError]:
        pixels = [round(float(image[0, 0, 0]), 4) for image in images]
        self.batches.append(pixels)
        self.entered.set()
        assert self.opened.wait(60)
        if self.POISON in pixels:
            raise RuntimeError("a kernel\nfailed with two lines")
        return super().__call__(images, explain, observe)


def marked(value: float) -> NDArray[np.float32]:
    """An image that a Valve tells from others, [1, 8, 8]."""
    image = np.full(GREY.shape, 0.5, np.float32)
    image[0, 0, 0] = value
    return image


def noise(seed: int, preprocessing: Preprocessing = GREY) -> NDArray[np.uint8]:
    """A random image, uint8 [C, H, W]."""
    return np.random.default_rng(seed).integers(0, 256, preprocessing.shape, np.uint8)


def frames(count: int) -> Iterator[NDArray[np.uint8]]:
    """What a camera sends of one scene."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield np.clip(noise(0) + rng.normal(0, 3, noise(0).shape), 0, 255).astype(np.uint8)


def untypical() -> NDArray[np.uint8]:
    """An image that drives one hidden neuron as no noise does, uint8 [1, 8, 8]: a map of its layer flags it."""
    weights = parts()[0].get_submodule("hidden").weight
    assert isinstance(weights, Tensor)
    pixels: NDArray[np.uint8] = ((weights[0] > 0) * 255).to(torch.uint8).view(GREY.shape).numpy()
    return pixels


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """An image file's content."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def config(**settings: Any) -> ServerConfig:
    """Defaults on free ports, everything disclosed, each request counted at once; a setting of a table is given by its
    own name alone.
    """
    content: dict[str, Any] = {"port": 0, "metrics_port": 0, "access": {"anonymous": DISCLOSING}, "metrics": AT_ONCE}
    for name, value in settings.items():
        own = () if name in ServerConfig.model_fields else ServerConfig.model_fields.items()
        table = next((t for t, f in own if name in settings_of(f)), None)
        if table is None:
            content[name] = value
        else:
            content[table] = content.get(table, {}) | {name: value}
    return ServerConfig.model_validate(content)


def settings_of(table: FieldInfo) -> Collection[str]:
    """The names of a table's settings; none where it is no table."""
    return getattr(table.annotation, "model_fields", {})


class Running:
    """A served server and what tests ask of it."""

    def __init__(self, server: Server, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.channel = channel
        self.stub: Any = screening_pb2_grpc.ScreeningStub(channel)  # type: ignore[no-untyped-call]
        self.target = f"127.0.0.1:{server.ports.port}"

    async def get(self, path: str) -> tuple[int, str]:
        """HTTP GET from the metrics port."""
        return await asyncio.to_thread(http_get, f"http://127.0.0.1:{self.server.ports.metrics_port}{path}")

    def value(self, name: str, **labels: str) -> float | None:
        """The value of a sample, None if there is none."""
        return self.server.metrics.registry.get_sample_value(name, labels)


@asynccontextmanager
async def running(served: LoadedBundle | None = None, settings: ServerConfig | None = None) -> AsyncIterator[Running]:
    """A server on free ports of 127.0.0.1, and a channel to it."""
    async with Server(config() if settings is None else settings) as server:
        await server.deploy(lambda: tiny_served() if served is None else served)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.port}") as channel:
            yield Running(server, channel)


# The tests' own classifier is found where this module is.
SERVE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from askance.__main__ import main
sys.argv = ["askance", "serve", *sys.argv[1:], "--allow-factory", "service_support"]
main()
"""


@contextmanager
def process_serving(*arguments: str | Path, **options: Any) -> Iterator[tuple[subprocess.Popen[str], Serving]]:
    """`askance serve ARGUMENTS` in a process of its own, from when it serves; with the block it ends, and well."""
    with started(["-c", SERVE, *map(str, arguments)], **options) as (process, serving):
        try:
            yield process, serving
        finally:
            process.terminate()
            assert process.wait(60) == 0


def http_get(url: str) -> tuple[int, str]:
    """(status, text) of a URL."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; the test's own time limit is the limit."""
    while not condition():
        await asyncio.sleep(0.002)


def wait_for(condition: Callable[[], object]) -> None:
    """The same, on a thread of the test's own."""
    while not condition():
        time.sleep(0.01)


def free_port() -> int:
    """One of this machine that nobody listens on, for a program that takes none itself."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """The code and details of a call that fails."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError("the call succeeded")


def requests_of(items: Sequence[pb.ScreenRequest]) -> Iterator[pb.ScreenRequest]:
    """The requests of a stream."""
    yield from items
