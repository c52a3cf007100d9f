"""Scaling: requests a second of several workers, beside those of one that is pinned to a core.

`python -m benchmarks.scaling`, or `make bench-workers`. The load generator shares the cores with the servers.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from askance.output import console, write_json
from askance.service.client_messages import request_of
from askance.service.launch import launched
from benchmarks.environment import prepare
from benchmarks.fixtures import Network, fit, lenet, resnet44
from benchmarks.load import Plan
from benchmarks.serving import carry_out, plans_of, publish_fixture
from benchmarks.sizes import FULL, QUICK, Sizes
from benchmarks.timing import Spread

CLIENTS = (16, 64)  # the more, the larger the batches of each; 64 fill those of two workers
ONE, ALL = "one pinned worker", "workers"
PINNED = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from askance.__main__ import main
sys.argv = ["askance", *sys.argv[1:]]
main()
"""


@dataclass(frozen=True)
class Scaling:
    """Both servers under the same load in turn.

    Attributes:
        network: what they screen with, in a single pass.
        workers: processes of the one; each computes with one thread, as the pinned one does.
        clients: connections, each with one request under way.
        rounds: slices of load on each.
        one, all: requests a second, medians over the slices.
        ratio: all / one, round by round.
    """

    network: str
    workers: int
    clients: int
    rounds: int
    one: float
    all: float
    ratio: Spread


def measure(network: Network, sizes: Sizes) -> list[Scaling]:
    """Serve a network both ways, a worker for each core beside one, and load them in turn.

    Raises:
        AskanceError: a server does not start or stop as it should.
        subprocess.SubprocessError: the load could not be carried out.
    """
    workers = len(os.sched_getaffinity(0))
    fixture = fit(network, sizes.fit_images[network.name], sizes.calibration_images)
    with tempfile.TemporaryDirectory(prefix="askance-bench-") as folder, ExitStack() as stack:
        publish_fixture(fixture, Path(folder) / "bundle")
        serve = ["serve", f"{folder}/bundle", "--port", "0", "--metrics-port", "0", "--single-pass", "--workers"]
        one = stack.enter_context(launched(["-c", PINNED, *serve, "1"]))
        several = stack.enter_context(launched(["-m", "askance", *serve, str(workers)]))
        request = request_of(fixture.images[0].numpy()).SerializeToString()
        plans = plans_of(sizes, {ONE: one.target, ALL: several.target}, [request], CLIENTS)
        return [_scaling(network.name, workers, plan) for plan in plans]


def _scaling(network: str, workers: int, plan: Plan) -> Scaling:
    slices = carry_out(plan)
    alone, together = ([part.requests_per_second for part in slices if part.target == name] for name in (ONE, ALL))
    ratio = Spread.of(mine / other for mine, other in zip(together, alone, strict=True))
    medians = statistics.median(alone), statistics.median(together)
    return Scaling(network, workers, plan.clients, plan.rounds, *medians, ratio)


def main(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures as JSON.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run, whose figures mean little.")] = False,
) -> None:
    """Measure what workers add, as a ratio: to ResNet44, in a smoke run to LeNet, which is soon made."""
    environment = prepare()
    console.print(str(environment), soft_wrap=True)
    found = measure(lenet(), QUICK) if quick else measure(resnet44(), FULL)
    for one in found:
        console.print(
            f"{one.network}, {one.clients} clients: {one.workers} workers {one.all:.4g} requests/s, "
            f"one pinned to a core {one.one:.4g}, ratio {one.ratio}",
            soft_wrap=True,
        )
    content: dict[str, Any] = {"environment": asdict(environment), "scaling": [asdict(one) for one in found]}
    write_json(json_file, content)


if __name__ == "__main__":
    typer.run(main)
