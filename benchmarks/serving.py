"""Serving: the askance server under load beside a server of the same protocol that does nothing."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from prometheus_client.parser import text_string_to_metric_families

from askance.calibration.exporting import graphs_of
from askance.classifiers import build_classifier
from askance.detectors.publishing import publish
from askance.screening.graph import Model
from askance.service.client_messages import request_of
from askance.service.launch import Serving, launched
from askance.service.protocols.screening_messages import screen_response
from benchmarks.fixtures import Fixture
from benchmarks.load import SCREEN, Plan, Slice
from benchmarks.sizes import Sizes
from benchmarks.timing import Spread

ASKANCE, NO_OP = "askance", "no-op"
FIGURES = ("requests_per_second", "p50_ms", "p99_ms")
PER_BATCH = "askance_batch_size"
STAGES = "askance_stage_seconds"
SENTINEL_CANDIDATES = 64  # images


@dataclass(frozen=True)
class ServingCost:
    """Both servers under the load of some concurrent clients.

    Attributes:
        network: what the askance server screens with.
        clients: connections, each with one request under way.
        rounds: slices of load on each server.
        requests: answered by the askance server.
        askance, no_op: {figure: median over the slices}.
        ratio: {figure: askance / no-op, round by round}.
        mean_batch: images that shared a call of the classifier, on average.
        stages_ms: {stage: mean milliseconds in the askance server}, as its metrics say: per image for decode, queue
            and respond, per batch for the others.
    """

    network: str
    clients: int
    rounds: int
    requests: int
    askance: dict[str, float]
    no_op: dict[str, float]
    ratio: dict[str, Spread]
    mean_batch: float
    stages_ms: dict[str, float]


def measure(fixture: Fixture, sizes: Sizes, graphs: Mapping[str, Model]) -> list[ServingCost]:
    """Publish the fixture as a bundle with its graphs, serve it, and load both servers in turn; everything is gone
    afterwards.

    Raises:
        AskanceError: a server does not start or stop as it should.
        subprocess.SubprocessError: the load could not be carried out.
    """
    image = fixture.images[0]
    request = request_of(image.numpy()).SerializeToString()
    (screening,) = fixture.screen(image[None].float() / 255)
    assert not isinstance(screening, Exception)
    with tempfile.TemporaryDirectory(prefix="askance-bench-") as folder, ExitStack() as stack:
        bundle, fixed = Path(folder) / "bundle", Path(folder) / "response"
        bundle_id = publish_fixture(fixture, bundle, graphs)
        fixed.write_bytes(screen_response("", bundle_id, screening, verdict=True, scores=True).SerializeToString())
        settings = Path(folder) / "server.toml"
        settings.write_text("port = 0\nmetrics_port = 0\n[metrics]\npool_requests = 1\npool_seconds = 0.0\n")
        serve = ["-m", "askance", "serve", str(bundle), "--config", str(settings), "--disclose"]
        askance = stack.enter_context(launched(serve))
        no_op = stack.enter_context(launched(["-m", "benchmarks.noop", str(fixed)]))
        plans = plans_of(sizes, {NO_OP: no_op.target, ASKANCE: askance.target}, [request], sizes.clients)
        return [_measure(fixture.network.name, plan, askance) for plan in plans]


def publish_fixture(fixture: Fixture, path: Path, graphs: Mapping[str, Model] | None = None) -> str:
    """Publish a fixture as a bundle with its graphs, made where none are given; return the bundle's id."""
    network, screen = fixture.network, fixture.screen
    return publish(
        path,
        classifier={
            "name": network.name,
            "factory": network.factory,
            "layers": screen.layers,
            "preprocessing": network.preprocessing,
            "class_names": screen.class_names,
        },
        weights=fixture.classifier.state_dict(),
        detectors=screen.reader.detectors,
        calibration=screen.calibration,
        build=build_classifier,
        clean=fixture.images[:SENTINEL_CANDIDATES],
        attacked=torch.empty(0, *network.preprocessing.shape),
        evaluation={},
        summary={},
        provenance={"benchmark": fixture.data},
        export=(lambda *_: dict(graphs)) if graphs else graphs_of,
    ).id


def _measure(network: str, plan: Plan, askance: Serving) -> ServingCost:
    before = _sums(askance)
    slices = carry_out(plan)
    spent = {key: value - before.get(key, 0.0) for key, value in _sums(askance).items()}
    ours, theirs = ([part for part in slices if part.target == name] for name in (ASKANCE, NO_OP))

    def medians(parts: list[Slice]) -> dict[str, float]:
        return {figure: statistics.median(asdict(part)[figure] for part in parts) for figure in FIGURES}

    return ServingCost(
        network=network,
        clients=plan.clients,
        rounds=plan.rounds,
        requests=sum(part.requests for part in ours),
        askance=medians(ours),
        no_op=medians(theirs),
        ratio={
            figure: Spread.of(
                asdict(mine)[figure] / asdict(other)[figure] for mine, other in zip(ours, theirs, strict=True)
            )
            for figure in FIGURES
        },
        mean_batch=spent[PER_BATCH, "sum"] / spent[PER_BATCH, "count"],
        stages_ms={
            stage: 1000 * spent[stage, "sum"] / count
            for (stage, kind), count in spent.items()
            if kind == "count" and stage != PER_BATCH and count
        },
    )


def plans_of(
    sizes: Sizes, targets: Mapping[str, str], messages: Sequence[bytes], clients: Sequence[int], method: str = SCREEN
) -> list[Plan]:
    """The same messages to servers in turn, by so many clients at once."""
    return [
        Plan(
            targets=dict(targets),
            messages=[message.hex() for message in messages],
            clients=count,
            rounds=sizes.rounds,
            seconds=sizes.slice_seconds,
            requests=sizes.slice_requests,
            method=method,
        )
        for count in clients
    ]


def carry_out(plan: Plan) -> list[Slice]:
    """Carry out a plan in another process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=json.dumps(asdict(plan)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=plan.most_seconds,
    )
    return [Slice(**part) for part in json.loads(done.stdout)]


def _sums(serving: Serving) -> dict[tuple[str, str], float]:
    """The server's sums and counts so far: {(stage or PER_BATCH, "sum" or "count"): value}."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{serving.metrics_host}:{serving.metrics_port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {
        (sample.labels.get("stage", PER_BATCH), kind): sample.value
        for family in families
        if family.name in (STAGES, PER_BATCH)
        for sample in family.samples
        if (kind := sample.name.rpartition("_")[2]) in ("sum", "count")
    }
