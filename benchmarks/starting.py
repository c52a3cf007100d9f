"""Starting: what a server takes until it serves, and of memory, by a bundle's graph and by torch.

`python -m benchmarks.starting`, or `make bench-starting`: LeNet with the library that the other benchmarks have.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from askance.calibration.progress import say
from askance.engines import Engine
from askance.errors import AskanceError
from askance.output import console, write_json
from askance.service.client import Client
from askance.service.launch import started
from benchmarks.environment import prepare
from benchmarks.fixtures import fit, lenet
from benchmarks.load import resident
from benchmarks.serving import publish_fixture
from benchmarks.sizes import FULL, Sizes
from benchmarks.timing import Spread

ENGINES = (Engine.ONNXRUNTIME, Engine.TORCH)
REQUESTS = 500  # answered before memory is looked at again


@dataclass(frozen=True)
class Start:
    """One start of a server.

    Attributes:
        seconds: until it served.
        megabytes: resident memory then, 10^6 bytes.
        megabytes_used: the same once it had answered some hundred requests.
    """

    seconds: float
    megabytes: float
    megabytes_used: float


def main(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures as JSON.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Starts of each.")] = 5,
) -> None:
    """Start a server by its graph and by torch in turn. Real images are used where ASKANCE_DATA names them."""
    try:
        write_json(json_file, measure(FULL, pairs))
    except AskanceError as error:
        say(f"starting: {error}")
        raise typer.Exit(2) from None


def measure(sizes: Sizes, pairs: int) -> dict[str, Any]:
    """Publish a bundle, start its server both ways in turn, print what that took, and return it JSON-ready."""
    environment = prepare()
    console.print(str(environment), soft_wrap=True)
    fixture = fit(lenet(), sizes.fit_images["LeNet"], sizes.calibration_images)
    starts: dict[str, list[Start]] = {engine.value: [] for engine in ENGINES}
    with tempfile.TemporaryDirectory(prefix="askance-bench-") as folder:
        bundle = Path(folder) / "bundle"
        publish_fixture(fixture, bundle)
        for _ in range(pairs):
            for engine in ENGINES:
                starts[engine].append(_start(bundle, engine, fixture.images[0].numpy()))
    found: dict[str, dict[str, Any]] = {name: _spreads(of) for name, of in starts.items()}
    for name, spreads in found.items():
        console.print(f"{name:12}" + ", ".join(f"{what} {Spread(**one)}" for what, one in spreads.items()))
    return {"environment": asdict(environment), "network": fixture.network.name, "rows": fixture.rows, "starts": found}


def _start(bundle: Path, engine: Engine, image: Any) -> Start:
    settings = bundle.with_name(f"{engine}.toml")
    settings.write_text(f'[inference]\nengine = "{engine}"\nthreads = 1\n')
    command = ["-m", "askance", "serve", str(bundle), "--config", str(settings), "--port", "0", "--metrics-port", "0"]
    begun = time.perf_counter()
    with started(command) as (process, serving):
        seconds = time.perf_counter() - begun
        idle = resident(process.pid) / 1e6
        with Client(serving.target) as client:
            for _ in range(REQUESTS):
                client.screen(image)
        return Start(seconds, idle, resident(process.pid) / 1e6)


def _spreads(starts: Sequence[Start]) -> dict[str, dict[str, float]]:
    return {
        what: asdict(Spread.of(getattr(one, what) for one in starts))
        for what in ("seconds", "megabytes", "megabytes_used")
    }


if __name__ == "__main__":
    typer.run(main)
