"""Looking: what it costs a busy server to be looked into, by the live page, and to look for who probes.

`python -m benchmarks.looking`, or `make bench-live`: LeNet in a single pass, 16 clients, over gRPC.
"""

from __future__ import annotations

import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from askance.calibration.progress import say
from askance.errors import AskanceError
from askance.output import console, write_json
from askance.service.client_messages import request_of
from askance.service.launch import Serving, launched
from benchmarks.environment import prepare
from benchmarks.fixtures import fit, lenet
from benchmarks.serving import carry_out, plans_of, publish_fixture
from benchmarks.sizes import FULL, Sizes
from benchmarks.timing import Spread

CLIENTS = 16
OFF, UNSEEN, SEEN = "switched off", "while nobody looks", "while somebody looks"
WATCHING = "while it looks for who probes"
PAGE, PROBING = "[live]\npage = true\n", '[live]\npage = false\n[probing]\nresponse = "log"\nkeep_seconds = 5\n'
SETTINGS = {OFF: "[live]\npage = false\n", UNSEEN: PAGE, SEEN: PAGE, WATCHING: PROBING}
FRAMES = 13  # of each image, asked for in turn; they are forgotten when they come again
NOISE = 8.0  # of a frame, of 255


def main(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures as JSON.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Slices of load on each.")] = 15,
    fit_images: Annotated[int, typer.Option(min=100, help="Images that the detectors are fitted on.")] = 5000,
) -> None:
    """Load servers without and with each in turn, on real images where ASKANCE_DATA names them."""
    try:
        write_json(json_file, measure(FULL, rounds, fit_images))
    except AskanceError as error:
        say(f"looking: {error}")
        raise typer.Exit(2) from None


def measure(sizes: Sizes, rounds: int, fit_images: int) -> dict[str, Any]:
    """Serve a bundle without and with each, load all in turn, print what looking costs, return it JSON-ready."""
    environment = prepare()
    console.print(str(environment), soft_wrap=True)
    fixture = fit(lenet(), fit_images, sizes.calibration_images)
    sizes = replace(sizes, rounds=1)
    per_second: dict[str, list[float]] = {way: [] for way in SETTINGS}
    with tempfile.TemporaryDirectory(prefix="askance-bench-") as folder, ExitStack() as stack:
        bundle = Path(folder) / "bundle"
        publish_fixture(fixture, bundle)
        messages = [request_of(frame).SerializeToString() for frame in _frames(fixture.images.numpy())]
        servers = {given: stack.enter_context(_serving(bundle, given)) for given in set(SETTINGS.values())}
        for _ in range(rounds):
            for way, found in per_second.items():
                server = servers[SETTINGS[way]]
                (plan,) = plans_of(sizes, {way: server.target}, messages, (CLIENTS,))
                with _looking(server) if way == SEEN else nullcontext():
                    found.append(carry_out(plan)[0].requests_per_second)
    ratios = {
        way: asdict(Spread.of(one / off for one, off in zip(per_second[way], per_second[OFF], strict=True)))
        for way in SETTINGS
        if way != OFF
    }
    for way, spread in ratios.items():
        console.print(f"requests/s {way}, beside {OFF}: {Spread(**spread)}")
    return {
        "environment": asdict(environment),
        "rows": fixture.rows,
        "clients": CLIENTS,
        "requests_per_second": {way: asdict(Spread.of(found)) for way, found in per_second.items()},
        "ratios": ratios,
    }


def _frames(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The images again and again, each time with a camera's noise."""
    rng = np.random.default_rng(0)
    for _ in range(FRAMES):
        for image in images:
            yield np.clip(np.rint(image + rng.normal(0, NOISE, image.shape)), 0, 255).astype(np.uint8)


@contextmanager
def _serving(bundle: Path, given: str) -> Iterator[Serving]:
    settings = bundle.with_name("server.toml")
    settings.write_text(f"port = 0\nmetrics_port = 0\n{given}")
    with launched(["-m", "askance", "serve", str(bundle), "--config", str(settings), "--disclose"]) as serving:
        yield serving


@contextmanager
def _looking(server: Serving) -> Iterator[None]:
    """Somebody who has the page open: its stream of figures is read, and asked for again when it ends."""
    left = threading.Event()

    def look() -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while not left.is_set():
            with opener.open(f"http://{server.metrics_host}:{server.metrics_port}/live/events", timeout=30) as stream:
                for _ in stream:
                    if left.is_set():
                        return

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield
    finally:
        left.set()
        looking.join()


if __name__ == "__main__":
    typer.run(main)
