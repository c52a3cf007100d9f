"""Looking: what the live page costs a busy server, while nobody looks and while somebody does.

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

import typer

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


def main(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures as JSON.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Slices of load on each.")] = 15,
    fit_images: Annotated[int, typer.Option(min=100, help="Images that the detectors are fitted on.")] = 5000,
) -> None:
    """Load a server without the live page and one with it in turn, on real images where ASKANCE_DATA names them."""
    try:
        write_json(json_file, measure(FULL, rounds, fit_images))
    except AskanceError as error:
        say(f"looking: {error}")
        raise typer.Exit(2) from None


def measure(sizes: Sizes, rounds: int, fit_images: int) -> dict[str, Any]:
    """Serve a bundle with and without the page, load both in turn, print what looking costs, return it JSON-ready."""
    environment = prepare()
    console.print(str(environment), soft_wrap=True)
    fixture = fit(lenet(), fit_images, sizes.calibration_images)
    sizes = replace(sizes, rounds=1)
    per_second: dict[str, list[float]] = {way: [] for way in (OFF, UNSEEN, SEEN)}
    with tempfile.TemporaryDirectory(prefix="askance-bench-") as folder, ExitStack() as stack:
        bundle = Path(folder) / "bundle"
        publish_fixture(fixture, bundle)
        request = request_of(fixture.images[0].numpy()).SerializeToString()
        servers = {page: stack.enter_context(_serving(bundle, page=page)) for page in (False, True)}
        for _ in range(rounds):
            for way, found in per_second.items():
                server = servers[way != OFF]
                (plan,) = plans_of(sizes, {way: server.target}, request, (CLIENTS,))
                with _looking(server) if way == SEEN else nullcontext():
                    found.append(carry_out(plan)[0].requests_per_second)
    ratios = {
        way: asdict(Spread.of(one / off for one, off in zip(per_second[way], per_second[OFF], strict=True)))
        for way in (UNSEEN, SEEN)
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


@contextmanager
def _serving(bundle: Path, *, page: bool) -> Iterator[Serving]:
    settings = bundle.with_name(f"{page}.toml")
    settings.write_text(f"port = 0\nmetrics_port = 0\n[live]\npage = {str(page).lower()}\n")
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
