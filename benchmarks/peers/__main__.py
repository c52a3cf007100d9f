"""Peers: askance, four detectors on, beside MLServer with the bare classifier, over the Open Inference Protocol.

`make bench-peers`. LeNet in a single pass; MLServer as it comes (a process that computes beside the
one that listens) and with one process. The load generator shares the cores with them.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import torch
import typer
from numpy.typing import NDArray

from askance.calibration.progress import say
from askance.errors import AskanceError
from askance.output import console, write_json
from askance.service.launch import launched
from askance.service.pb.inference import inference_pb2 as oip
from askance.service.pb.inference import inference_pb2_grpc
from benchmarks.environment import prepare
from benchmarks.fixtures import Fixture, fit, lenet
from benchmarks.load import Plan
from benchmarks.serving import FIGURES, carry_out, plans_of, publish_fixture
from benchmarks.sizes import FULL, QUICK, Sizes
from benchmarks.timing import Spread

ASKANCE = "askance"
MLSERVER = {"MLServer": 1, "MLServer, one process": 0}  # processes that compute beside the one that listens
METHOD = "/inference.GRPCInferenceService/ModelInfer"
START_SECONDS = 60.0


@dataclass(frozen=True)
class Served:
    """A server under the load of some concurrent clients.

    Attributes:
        server: which.
        clients: connections, each with one request under way.
        requests_per_second, p50_ms, p99_ms: medians over the slices.
        ratio: of those, to the faster of the bare servers, round by round.
    """

    server: str
    clients: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    ratio: dict[str, Spread]


def main(
    python: Annotated[Path, typer.Argument(metavar="PYTHON", help="Of the environment that MLServer is in.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures as JSON.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run, whose figures mean little.")] = False,
) -> None:
    """Measure askance beside servers that detect nothing. Real images are used where ASKANCE_DATA names them."""
    try:
        write_json(json_file, measure(python, QUICK if quick else FULL))
    except AskanceError as error:
        say(f"peers: {error}")
        raise typer.Exit(2) from None


def measure(python: Path, sizes: Sizes) -> dict[str, Any]:
    """Publish a bundle, serve it and the bare classifier, load the servers in turn, and return what that gave.

    Raises:
        AskanceError: a server does not start, or does not answer as the classifier does.
        subprocess.SubprocessError: the load could not be carried out.
    """
    environment = prepare()
    console.print(str(environment), soft_wrap=True)
    fixture = fit(lenet(), sizes.fit_images["LeNet"], sizes.calibration_images)
    name, image = fixture.network.name, fixture.images[:1].numpy().astype(np.float32) / 255
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=image.shape)
    request = oip.ModelInferRequest(model_name=name, inputs=[tensor], raw_input_contents=[image.tobytes()])
    with tempfile.TemporaryDirectory(prefix="askance-bench-") as folder, ExitStack() as stack:
        bundle, module = Path(folder) / "bundle", Path(folder) / "classifier.pt"
        publish_fixture(fixture, bundle)
        bare = _Bare(fixture)
        with torch.inference_mode():
            expected = bare(torch.from_numpy(image)).numpy()
        torch.jit.trace(bare, torch.from_numpy(image)).save(module)
        serve = ["-m", "askance", "serve", str(bundle), "--port", "0", "--metrics-port", "0"]
        targets = {ASKANCE: stack.enter_context(launched(serve)).target}
        for one, workers in MLSERVER.items():
            settings = Path(folder) / f"mlserver-{workers}"
            targets[one] = stack.enter_context(mlserver(python, settings, name, module, workers))
            _check(targets[one], request, expected)
        plans = plans_of(sizes, targets, [request.SerializeToString()], sizes.clients, METHOD)
        served = [found for plan in plans for found in _served(plan)]
    for cost in served:
        beside = ", ".join(f"{figure} {ratio}" for figure, ratio in cost.ratio.items())
        console.print(
            f"{cost.server}, {cost.clients} clients: {cost.requests_per_second:.0f} requests/s, "
            f"p50 {cost.p50_ms:.2f} ms, p99 {cost.p99_ms:.2f} ms; beside the better MLServer: {beside}",
            soft_wrap=True,
        )
    return {"environment": asdict(environment), "rows": fixture.rows, "served": [asdict(cost) for cost in served]}


class _Bare(torch.nn.Module):
    """The classifier behind its normalisation, on images in [0, 1]."""

    def __init__(self, fixture: Fixture) -> None:
        super().__init__()
        self.classifier = fixture.bare_classifier().eval()
        preprocessing = fixture.network.preprocessing
        self.mean, self.std = (torch.tensor(one)[:, None, None] for one in (preprocessing.mean, preprocessing.std))

    def forward(self, images: torch.Tensor) -> Any:
        """Logits, [B, K]."""
        return self.classifier((images - self.mean) / self.std)


@contextmanager
def mlserver(python: Path, folder: Path, name: str, module: Path, workers: int) -> Iterator[str]:
    """Run MLServer with the module until the block ends; where it serves gRPC.

    Raises:
        AskanceError: it does not serve within a minute.
    """
    folder.mkdir()
    grpc_port, http_port, metrics_port = _free_ports(3)
    settings = {
        "host": "127.0.0.1",
        "grpc_port": grpc_port,
        "http_port": http_port,
        "metrics_port": metrics_port,
        "parallel_workers": workers,
        "debug": False,  # its log of each request
    }
    model = {"name": name, "implementation": "runtime.Classifier", "parameters": {"uri": str(module)}}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [str(python.absolute().with_name("mlserver")), "start", str(folder)]  # it starts in another folder
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            target = f"127.0.0.1:{grpc_port}"
            if not _serves(target, name, process):
                raise AskanceError(f"MLServer did not serve: {(folder / 'log').read_text()[-2000:]}")
            yield target
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def _stub(target: str) -> Iterator[Any]:
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]


def _serves(target: str, name: str, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_SECONDS
    with _stub(target) as stub:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if stub.ModelReady(oip.ModelReadyRequest(name=name), timeout=5).ready:
                    return True
            except grpc.RpcError:
                pass
            time.sleep(0.2)
    return False


def _check(target: str, request: oip.ModelInferRequest, expected: NDArray[np.float32]) -> None:
    """Whether a server answers as the classifier does: else its speed says nothing.

    Raises:
        AskanceError: it does not.
    """
    with _stub(target) as stub:
        (content,) = stub.ModelInfer(request, timeout=30).raw_output_contents
    logits = np.frombuffer(content, "<f4").reshape(expected.shape)
    if not np.allclose(logits, expected, rtol=1e-3, atol=1e-3):
        raise AskanceError(f"MLServer answers {logits} in place of {expected}")


def _served(plan: Plan) -> list[Served]:
    slices = carry_out(plan)
    rounds = [slices[first : first + len(plan.targets)] for first in range(0, len(slices), len(plan.targets))]
    found = []
    for place, server in enumerate(plan.targets):
        of = [asdict(one[place]) for one in rounds]
        bare = [[asdict(part) for part in one if part.target in MLSERVER] for one in rounds]
        ratio = {
            figure: Spread.of(
                mine[figure] / better(part[figure] for part in others) for mine, others in zip(of, bare, strict=True)
            )
            for figure, better in zip(FIGURES, (max, min, min), strict=True)
        }
        medians = {figure: statistics.median(one[figure] for one in of) for figure in FIGURES}
        found.append(Served(server, plan.clients, ratio=ratio, **medians))
    return found


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


if __name__ == "__main__":
    typer.run(main)
