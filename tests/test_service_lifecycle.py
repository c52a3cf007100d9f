"""The server's life: health, ports in use, draining in process, and real signals to a real process."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from service_support import (
    SERVE,
    Running,
    Valve,
    build_tiny,
    config,
    http_get,
    marked,
    noise,
    publish_tiny,
    running,
    status_of,
    tiny_screen,
    tiny_served,
    until,
    wait_for,
)

from askance.answers import Answer
from askance.errors import AskanceError, BundleError, ConfigError
from askance.service.client import Client
from askance.service.client_messages import ServiceError, request_of
from askance.service.launch import Serving, launched
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.askance.v1 import screening_pb2_grpc
from askance.service.runtime.model import LoadedBundle
from askance.service.server import HEALTH_NAMES, Server

TESTS = Path(__file__).parent
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(channel: grpc.aio.Channel) -> set[int]:
    """The health of every name."""
    stub: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
    return {
        (await stub.Check(health_pb2.HealthCheckRequest(service=name), wait_for_ready=True)).status
        for name in HEALTH_NAMES
    }


def test_health_follows_loading_serving_and_draining() -> None:
    async def main() -> None:
        valve = Valve()
        loaded = threading.Event()

        def load() -> LoadedBundle:
            assert loaded.wait(60)
            return tiny_served(valve)

        async with Server(config()) as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.port}") as channel:
            service = Running(server, channel)
            deploying = asyncio.ensure_future(server.deploy(load))
            assert await health(channel) == {NOT_SERVING}
            assert await service.get("/healthz") == (503, "loading\n")
            assert await status_of(service.stub.Screen(request_of(noise(1)))) == (
                grpc.StatusCode.UNAVAILABLE,
                "the server is loading: try again or another server",
            )
            loaded.set()
            await deploying
            assert await health(channel) == {SERVING}
            assert await service.get("/healthz") == (200, "serving\n")

            valve.shut()
            accepted = [asyncio.ensure_future(service.stub.Screen(request_of(marked(0.1)))) for _ in range(3)]
            await until(lambda: valve.entered.is_set() and service.value("askance_batch_size_count") == 1)
            await until(lambda: server.admission.calls == 3)
            stopping = asyncio.ensure_future(server.stop())
            await until(lambda: server.admission.state == "draining")
            assert await health(channel) == {NOT_SERVING}
            assert await service.get("/healthz") == (503, "draining\n")
            code, details = await status_of(service.stub.Screen(request_of(noise(1))))
            assert (code, details) == (
                grpc.StatusCode.UNAVAILABLE,
                "the server is draining: try again or another server",
            )
            assert not stopping.done()
            valve.opened.set()
            assert [answer.prediction.name != "" for answer in await asyncio.gather(*accepted)] == [True] * 3
            await stopping
            assert service.value("askance_rejected_total", reason="draining") == 1
            assert service.value("askance_rejected_total", reason="loading") == 1

    asyncio.run(main())


def test_a_leaving_server_answers_until_balancers_have_noticed() -> None:
    async def main() -> None:
        async with running(settings=config(lame_duck_seconds=3600)) as service:
            server = service.server
            stopping = asyncio.ensure_future(server.stop())
            await until(lambda: server.admission.state == "lame duck")
            assert await health(service.channel) == {NOT_SERVING}
            assert await service.get("/healthz") == (503, "lame duck\n")
            assert (await service.stub.Screen(request_of(noise(1)))).prediction.name
            assert not stopping.done()
            server.hurry()
            await stopping
            assert server.admission.state == "draining"

    asyncio.run(main())


def test_a_stalled_server_that_leaves_lets_nobody_in() -> None:
    async def main() -> None:
        async with running(settings=config(lame_duck_seconds=3600)) as service:
            service.server.admission.stall(True)
            await service.server.stop()  # at once
            assert service.server.admission.state == "draining"

    asyncio.run(main())


def test_draining_answers_what_a_stream_has_sent_then_ends_it() -> None:
    async def main() -> None:
        valve = Valve()
        async with running(tiny_served(valve), config(max_batch=1)) as service:
            valve.shut()
            call = service.stub.ScreenStream()
            for i in range(3):
                await call.write(request_of(marked(i / 10), request_id=str(i)))
            await until(valve.entered.is_set)
            await until(lambda: service.value("askance_queue_depth") == 2)
            stopping = asyncio.ensure_future(service.server.stop())
            await until(lambda: service.server.admission.state == "draining")
            valve.opened.set()
            assert [(await call.read()).response.request_id for _ in range(3)] == ["0", "1", "2"]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert caught.value.details() == "the server is draining: try again or another server"
            await stopping
            assert service.value("askance_requests_total", method="ScreenStream", code="OK") == 3
            assert service.value("askance_requests_total", method="ScreenStream", code="UNAVAILABLE") == 1

    asyncio.run(main())


def test_draining_gives_up_after_its_time() -> None:
    async def main() -> None:
        valve = Valve()
        async with running(tiny_served(valve), config(max_batch=1, drain_seconds=0.05)) as service:
            valve.shut()
            first = asyncio.ensure_future(service.stub.Screen(request_of(marked(0.1))))
            await until(valve.entered.is_set)
            second = asyncio.ensure_future(service.stub.Screen(request_of(marked(0.2))))
            await until(lambda: service.value("askance_queue_depth") == 1)
            stopping = asyncio.ensure_future(service.server.stop())
            assert await status_of(second) == (
                grpc.StatusCode.UNAVAILABLE,
                "the server is draining: try again or another server",
            )
            valve.opened.set()
            assert (await first).prediction.name  # the call under way is finished
            await stopping

    asyncio.run(main())


@pytest.mark.parametrize("setting", ["port", "metrics_port"])
def test_a_port_in_use_is_one_line_that_names_it(setting: str, capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            with pytest.raises(AskanceError) as caught:
                async with Server(config().model_copy(update={setting: port})):
                    raise AssertionError("it listened")
            assert str(caught.value) == (
                f"port {port} on 127.0.0.1 is in use: "
                f"stop what listens there, or choose another {setting} (0 takes any)"
            )

    asyncio.run(main())
    assert capfd.readouterr().err == ""


def test_two_servers_do_not_share_a_port() -> None:
    async def main() -> None:
        async with running() as service:
            with pytest.raises(AskanceError, match=f"port {service.server.ports.port} on 127.0.0.1 is in use"):
                async with Server(config().model_copy(update={"port": service.server.ports.port})):
                    raise AssertionError("it listened")

    asyncio.run(main())


@pytest.mark.parametrize("host", ["host", "metrics_host"])
def test_a_host_that_is_not_ours_is_one_line(host: str) -> None:
    port = host.replace("host", "port")

    async def main() -> None:
        with pytest.raises(AskanceError, match=rf"^{port} 0 on 192\.0\.2\.1 cannot be listened on: Cannot assign"):
            async with Server(config(**{host: "192.0.2.1"})):
                raise AssertionError("it listened")

    asyncio.run(main())


def test_a_bundle_that_does_not_fit_the_limits_is_refused() -> None:
    async def main() -> None:
        async with Server(config(max_message_bytes=1024)) as server:
            with pytest.raises(
                ConfigError, match=r"max_message_bytes: a tensor for this .* takes 1280 bytes, got 1024"
            ):
                await server.deploy(tiny_served)

    asyncio.run(main())


def test_a_bundle_whose_classifier_fails_is_refused_before_it_serves() -> None:
    async def main() -> None:
        async with Server(config()) as server:
            broken = tiny_served()
            broken.screen.close()
            with pytest.raises(BundleError, match="bundle 0123456789ab cannot screen an image: this Tap is closed"):
                await server.deploy(lambda: broken)
            assert server.admission.state == "loading"

    asyncio.run(main())


def test_a_real_bundle_is_served(tmp_path: Path) -> None:
    bundle_id = publish_tiny(tmp_path / "bundle")
    served = LoadedBundle.open(tmp_path / "bundle", build_tiny)
    (expected,) = served.screen(torch.from_numpy(noise(3))[None].float() / 255)

    async def main() -> None:
        async with running(served) as service:
            answer = await service.stub.Screen(request_of(noise(3)))
            assert answer.bundle_id == bundle_id
            assert answer.p_value == expected.p_value  # type: ignore[union-attr]
            described = await service.stub.Describe(pb.DescribeRequest())
            assert described.created.seconds == int(served.created.timestamp())

    asyncio.run(main())


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from service_support import Valve, tiny_served, build_tiny
from askance.service.config import ServerConfig
from askance.service.runtime.model import LoadedBundle
from askance.service.process import run
from askance.service.program import serve

{body}
"""

# The classifier waits, after its warm-up, for a file that the test makes.
HELD = """
import time
class Held(Valve):
    def __call__(self, *arguments):
        while self.batches and not Path(sys.argv[1]).exists():
            time.sleep(0.002)
        return super().__call__(*arguments)
config = ServerConfig(port=0, metrics_port=0, shutdown={"drain_seconds": float(sys.argv[2])})
run(lambda: tiny_served(Held()), config, lambda serving: print(serving, flush=True))
"""
PLAIN = """
run(tiny_served, ServerConfig(port=0, metrics_port=0), lambda serving: print(serving, flush=True))
"""
BUNDLE = """
config = ServerConfig(port=0, metrics_port=0, bundles={"allowed_factories": ["service_support"]})
serve(Path(sys.argv[1]), config, lambda serving: print(serving, flush=True))
"""


def script(body: str) -> str:
    return SCRIPT.format(tests=str(TESTS), body=body)


@contextmanager
def process_of(body: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Serving]]:
    """A server process and what it said; killed if the test fails."""
    with subprocess.Popen(
        [sys.executable, "-c", script(body), *arguments],
        cwd=TESTS.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            serving = Serving.parse(process.stdout.readline())
            assert serving is not None, process.stderr.read()
            yield process, serving
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_loses_no_accepted_request(tmp_path: Path, number: signal.Signals) -> None:
    release = tmp_path / "release"
    with process_of(HELD, str(release), "20") as (process, serving):
        base = f"http://127.0.0.1:{serving.metrics_port}"
        with grpc.insecure_channel(serving.target) as channel:
            stub = screening_pb2_grpc.ScreeningStub(channel)  # type: ignore[no-untyped-call]
            first = stub.Screen.future(request_of(noise(0)))
            wait_for(lambda: "askance_batch_size_count 1.0" in http_get(f"{base}/metrics")[1])
            others = [stub.Screen.future(request_of(noise(seed), request_id=str(seed))) for seed in range(1, 41)]
            wait_for(lambda: "askance_queue_depth 40.0" in http_get(f"{base}/metrics")[1])
            process.send_signal(number)
            wait_for(lambda: http_get(f"{base}/healthz") == (503, "draining\n"))
            with pytest.raises(grpc.RpcError) as caught:
                stub.Screen(request_of(noise(1)))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            release.touch()
            assert first.result().bundle_id
            assert [call.result().request_id for call in others] == [str(seed) for seed in range(1, 41)]
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert {line.split()[2] for line in process.stderr} == {"INFO"}


def test_a_second_signal_ends_the_draining(tmp_path: Path) -> None:
    release = tmp_path / "release"
    with process_of(HELD, str(release), "20") as (process, serving):
        base = f"http://127.0.0.1:{serving.metrics_port}"
        with grpc.insecure_channel(serving.target) as channel:
            stub = screening_pb2_grpc.ScreeningStub(channel)  # type: ignore[no-untyped-call]
            first = stub.Screen.future(request_of(noise(0)))
            wait_for(lambda: "askance_batch_size_count 1.0" in http_get(f"{base}/metrics")[1])
            waiting = stub.Screen.future(request_of(noise(1)))
            wait_for(lambda: "askance_queue_depth 1.0" in http_get(f"{base}/metrics")[1])
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: http_get(f"{base}/healthz") == (503, "draining\n"))
            assert not waiting.done()
            process.send_signal(signal.SIGTERM)
            assert waiting.exception().code() is grpc.StatusCode.UNAVAILABLE
            release.touch()
            assert first.result().bundle_id  # what the classifier has begun is always finished
        assert process.wait(60) == 0


def test_a_second_signal_ends_a_process_whose_classifier_hangs(tmp_path: Path) -> None:
    with process_of(HELD, str(tmp_path / "never"), "0.5") as (process, serving):
        with grpc.insecure_channel(serving.target) as channel:
            stub = screening_pb2_grpc.ScreeningStub(channel)  # type: ignore[no-untyped-call]
            held = stub.Screen.future(request_of(noise(0)))
            base = f"http://127.0.0.1:{serving.metrics_port}"
            wait_for(lambda: "askance_batch_size_count 1.0" in http_get(f"{base}/metrics")[1])
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: http_get(f"{base}/healthz") == (503, "draining\n"))
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 1
            assert held.exception().code() is grpc.StatusCode.UNAVAILABLE
        assert process.stderr is not None
        line = "askance: ended by force, 0.5 s after the second signal to stop: something in it hangs"
        assert process.stderr.read().splitlines()[-1] == line


def test_sigterm_under_load_answers_or_refuses_every_request() -> None:
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()
    started = threading.Barrier(5)

    def hammer(target: str) -> None:
        with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = screening_pb2_grpc.ScreeningStub(channel)  # type: ignore[no-untyped-call]
            for count in range(1_000_000):
                if count == 20:
                    started.wait()
                try:
                    stub.Screen(request_of(noise(1)), timeout=60)
                    outcome = "OK"
                except grpc.RpcError as error:
                    outcome = error.code().name
                with lock:
                    outcomes[outcome] += 1
                if outcome != "OK":
                    return

    with process_of(PLAIN) as (process, serving):
        clients = [threading.Thread(target=hammer, args=(serving.target,)) for _ in range(4)]
        for client in clients:
            client.start()
        started.wait()
        process.send_signal(signal.SIGTERM)
        for client in clients:
            client.join()
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert {line.split()[2] for line in process.stderr} == {"INFO"}
    assert set(outcomes) == {"OK", "UNAVAILABLE"}
    assert outcomes["UNAVAILABLE"] == 4
    assert outcomes["OK"] >= 80


def test_hangups_while_it_starts_do_no_harm(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "bundle", "service_support:TinyClassifier")
    command = [sys.executable, "-c", SERVE, str(tmp_path / "bundle"), "--port", "0", "--metrics-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        status, served = Path(f"/proc/{process.pid}/status"), threading.Event()

        def ignores_hangups() -> bool:
            (mask,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigIgn:"))
            return bool(int(mask, 16) & 1 << (signal.SIGHUP - 1))

        def hang_up() -> None:
            while not served.wait(0.005):
                process.send_signal(signal.SIGHUP)

        wait_for(ignores_hangups)
        nuisance = threading.Thread(target=hang_up)
        nuisance.start()
        assert process.stdout is not None
        serving = Serving.parse(process.stdout.readline())
        served.set()
        nuisance.join()
        assert serving is not None
        with Client(serving.target) as client:
            assert client.screen(noise(1)).prediction is not None
        process.terminate()
        assert process.wait(60) == 0


def test_a_missing_bundle_ends_the_process_before_it_serves(tmp_path: Path) -> None:
    with (
        pytest.raises(AskanceError, match=r"the server ended before it served \(exit code 1\)"),
        launched(["-c", script(BUNDLE), str(tmp_path / "none")]),
    ):
        raise AssertionError("it served")


def test_serve_opens_a_bundle_with_its_own_classifier(tmp_path: Path) -> None:
    bundle_id = publish_tiny(tmp_path / "bundle", "service_support:TinyClassifier")
    with launched(["-c", script(BUNDLE), str(tmp_path / "bundle")]) as serving, Client(serving.target) as client:
        assert serving.bundle_id == bundle_id[:12]
        assert client.describe().bundle_id == bundle_id
        (expected,) = tiny_screen()(torch.from_numpy(noise(3))[None].float() / 255)
        answer = client.screen(noise(3))
        assert isinstance(expected, Answer)
        assert answer.verdict is expected.verdict
        # by default anonymous clients see neither scores nor p-values
        assert (answer.label, answer.p_value, answer.screening) == (expected.label, None, None)


def test_a_launched_server_serves_and_stops() -> None:
    with launched(["-c", script(PLAIN)]) as serving, Client(serving.target) as client:
        assert serving.bundle_id == "0123456789ab"
        assert client.screen(noise(1)).label
    with Client(serving.target) as client, pytest.raises(ServiceError, match=f"nothing answers at {serving.target}"):
        client.describe()


def test_the_line_of_a_server_reads_back() -> None:
    serving = Serving("0123456789ab", "127.0.0.1", 1, 2)
    assert str(serving) == (
        "askance: serving bundle 0123456789ab on 127.0.0.1:1, metrics on http://127.0.0.1:2/metrics"
    )
    assert Serving.parse(str(serving) + "\n") == serving
    everywhere = Serving("0123456789ab", "::", 1, 2)
    assert Serving.parse(str(everywhere)) == everywhere
    assert everywhere.target == "[::1]:1"
    apart = Serving("0123456789ab", "0.0.0.0", 1, 2, 3, "::1", "https")
    assert "metrics on https://[::1]:2/metrics, REST on 0.0.0.0:3/v2" in str(apart)
    assert Serving.parse(str(apart)) == apart
    assert Serving.parse("something else") is None
