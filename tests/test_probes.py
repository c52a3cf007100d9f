"""Probes as common tools send them: each gets the state of the server, by whichever port, method and spelling."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from service_support import Running, config, status_of, tiny_served

from askance.service.guard.admission import State
from askance.service.pb.inference import inference_pb2, inference_pb2_grpc
from askance.service.server import HEALTH_NAMES, Server

METRICS, REST, GRPC = "metrics", "rest", "grpc"


async def raw(port: int, request: str) -> tuple[int, str, str]:
    """(status, head, body) of what a server sends before it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.replace("\n", "\r\n").encode())
    answer = (await reader.read()).decode()
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), head.lower(), body


# What each tool sends, by the port that it is pointed at. Those without a path of their own ask for "/".
PROBES = {
    "HAProxy: option httpchk": (METRICS, "OPTIONS / HTTP/1.0\n\n"),
    "HAProxy: option httpchk /healthz": (METRICS, "OPTIONS /healthz HTTP/1.0\n\n"),
    "HAProxy: http-check send meth GET": (METRICS, "GET /healthz HTTP/1.0\n\n"),
    "HAProxy: http-check send meth HEAD": (METRICS, "HEAD /healthz HTTP/1.1\nHost: a\nConnection: close\n\n"),
    "HAProxy: of the REST port": (REST, "OPTIONS / HTTP/1.0\n\n"),
    "HAProxy: of its readiness": (REST, "OPTIONS /v2/health/ready HTTP/1.0\n\n"),
    "kubelet": (
        METRICS,
        "GET /healthz HTTP/1.1\nHost: 10.0.0.1:9500\nUser-Agent: kube-probe/1.31\nConnection: close\n\n",
    ),
    "kubelet, a slash too many": (METRICS, "GET /healthz/ HTTP/1.1\nHost: a\nConnection: close\n\n"),
    "AWS ALB": (
        METRICS,
        "GET /healthz HTTP/1.1\nHost: 10.0.0.1:9500\nConnection: close\nUser-Agent: ELB-HealthChecker/2.0\n"
        "Accept-Encoding: gzip, compressed\n\n",
    ),
    "AWS ALB, its default path": (METRICS, "GET / HTTP/1.1\nHost: 10.0.0.1:9500\nConnection: close\n\n"),
    "GCP": (METRICS, "GET / HTTP/1.1\nHost: 10.0.0.1\nUser-Agent: GoogleHC/1.0\nConnection: close\n\n"),
    "GCP, of the REST port": (REST, "GET / HTTP/1.1\nHost: 10.0.0.1\nUser-Agent: GoogleHC/1.0\nConnection: close\n\n"),
    "Envoy": (METRICS, "GET /healthz HTTP/1.1\nhost: askance\nuser-agent: Envoy/HC\nconnection: close\n\n"),
    "wget --spider": (METRICS, "HEAD /healthz HTTP/1.1\nHost: a\nAccept: */*\nConnection: close\n\n"),
    "KServe": (REST, "GET /v2/health/ready HTTP/1.1\nHost: a\nConnection: close\n\n"),
    "KServe, a slash too many": (REST, "GET /v2/health/ready/ HTTP/1.1\nHost: a\nConnection: close\n\n"),
    "KServe, HTTP/1.0": (REST, "GET /v2/health/ready HTTP/1.0\n\n"),
    "Triton: HEAD": (REST, "HEAD /v2/health/ready HTTP/1.1\nHost: a\nConnection: close\n\n"),
    "Triton: of the model": (REST, "GET /v2/models/tiny/ready HTTP/1.1\nHost: a\nConnection: close\n\n"),
    "Triton: of the model, HEAD and a slash": (
        REST,
        "HEAD /v2/models/tiny/ready/ HTTP/1.1\nHost: a\nConnection: close\n\n",
    ),
}


def serve(test: Callable[[Server, grpc.aio.Channel], Awaitable[None]]) -> None:
    """Run a test on a server that nothing is deployed on yet."""

    async def main() -> None:
        async with (
            Server(config(rest_port=0)) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.port}") as channel,
        ):
            await test(server, channel)

    asyncio.run(main())


def port_of(server: Server, which: str) -> int:
    return {METRICS: server.ports.metrics_port, REST: server.ports.others["rest"], GRPC: server.ports.port}[which]


@pytest.mark.parametrize("tool", PROBES)
def test_a_probe_is_told_the_state(tool: str) -> None:
    which, request = PROBES[tool]

    async def test(server: Server, _channel: grpc.aio.Channel) -> None:
        async def asked() -> int:
            status, head, body = await raw(port_of(server, which), request)
            assert not (body and request.startswith("HEAD")), body
            assert "location:" not in head
            return status

        unready = 503 if which == METRICS else 400
        assert await asked() == unready
        await server.deploy(tiny_served)
        assert await asked() == 200
        server.admission.state = State.DRAINING
        assert await asked() == unready

    serve(test)


@pytest.mark.parametrize("verb", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_liveness_is_told_in_every_state(verb: str, slash: str) -> None:
    async def test(server: Server, _channel: grpc.aio.Channel) -> None:
        for state in State:
            server.admission.state = state
            request = f"{verb} /v2/health/live{slash} HTTP/1.1\nHost: a\nConnection: close\n\n"
            assert (await raw(port_of(server, REST), request))[0] == 200

    serve(test)


def test_metrics_may_be_asked_for_by_head_and_changed_by_nobody() -> None:
    async def test(server: Server, _channel: grpc.aio.Channel) -> None:
        port = server.ports.metrics_port
        status, _, body = await raw(port, "HEAD /metrics HTTP/1.0\n\n")
        assert (status, body) == (200, "")
        for verb in ("POST", "OPTIONS", "DELETE"):
            status, head, _ = await raw(port, f"{verb} /metrics HTTP/1.0\n\n")
            assert (status, "allow: get, head" in head) == (405, True)

    serve(test)


def test_a_path_and_its_slash_are_one_path_on_the_rest_port() -> None:
    async def test(server: Server, _channel: grpc.aio.Channel) -> None:
        await server.deploy(tiny_served)
        for path in ("/v2", "/v2/models/tiny", "/v2/models/tiny/config", "/v2/models/stats"):
            for slash in ("", "/"):
                assert (await raw(port_of(server, REST), f"GET {path}{slash} HTTP/1.0\n\n"))[0] == 200, path + slash

    serve(test)


def test_health_over_grpc_for_the_server_and_each_service() -> None:
    """The kubelet's probes, grpc_health_probe's and Envoy's."""

    async def test(server: Server, channel: grpc.aio.Channel) -> None:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]

        async def states() -> set[int]:
            asked = [health_pb2.HealthCheckRequest(service=name) for name in HEALTH_NAMES]
            return {(await stub.Check(request)).status for request in asked}

        assert "" in HEALTH_NAMES
        assert await states() == {health_pb2.HealthCheckResponse.NOT_SERVING}
        await server.deploy(tiny_served)
        assert await states() == {health_pb2.HealthCheckResponse.SERVING}
        unknown = stub.Check(health_pb2.HealthCheckRequest(service="readiness"))
        assert (await status_of(unknown))[0] is grpc.StatusCode.NOT_FOUND
        watching = stub.Watch(health_pb2.HealthCheckRequest(service="readiness"))
        assert (await anext(aiter(watching))).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watching.cancel()

    serve(test)


def test_an_albs_grpc_check_is_unimplemented_which_is_its_success() -> None:
    async def test(_server: Server, channel: grpc.aio.Channel) -> None:
        untyped: Any = channel
        call = untyped.unary_unary("/AWS.ALB/healthcheck")
        assert (await status_of(call(b"")))[0] is grpc.StatusCode.UNIMPLEMENTED

    serve(test)


def test_tritons_probes_over_grpc() -> None:
    async def test(server: Server, channel: grpc.aio.Channel) -> None:
        stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]

        async def ready() -> tuple[bool, bool]:
            model = await stub.ModelReady(inference_pb2.ModelReadyRequest(name="tiny"))
            return (await stub.ServerReady(inference_pb2.ServerReadyRequest())).ready, model.ready

        assert (await stub.ServerLive(inference_pb2.ServerLiveRequest())).live
        assert await ready() == (False, False)
        await server.deploy(tiny_served)
        assert await ready() == (True, True)

    serve(test)


def test_plain_http_on_the_grpc_port_ends_the_connection_and_nothing_else() -> None:
    async def test(server: Server, channel: grpc.aio.Channel) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.ports.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await reader.read()  # to its end
        writer.close()
        await server.deploy(tiny_served)
        assert await Running(server, channel).get("/healthz") == (200, "serving\n")

    serve(test)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_as_container_health_checks_call_it() -> None:
    async def test(server: Server, _channel: grpc.aio.Channel) -> None:
        await server.deploy(tiny_served)
        for arguments in (["-fsS"], ["-fsSI"], ["-fsS", "-0"]):
            url = f"http://127.0.0.1:{server.ports.metrics_port}/healthz"
            done = await asyncio.create_subprocess_exec(
                "curl", "--noproxy", "*", *arguments, url, stdout=asyncio.subprocess.DEVNULL
            )
            assert await done.wait() == 0, arguments

    serve(test)
