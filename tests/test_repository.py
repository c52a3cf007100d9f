"""Bundles that take each other's place under load: no failed request, and every answer is its bundle's own."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from service_support import (
    CREATED,
    NO_SENTINELS,
    Valve,
    build_tiny,
    config,
    http_get,
    marked,
    noise,
    process_serving,
    publish_tiny,
    running,
    status_of,
    tiny_screen,
    until,
)
from toy import whole

from askance.detectors import Bundle
from askance.errors import AskanceError, BundleError
from askance.service.call import DISCLOSING, Role
from askance.service.client import Client
from askance.service.client_messages import request_of
from askance.service.guard.access import ClientConfig, new_token
from askance.service.pb.askance.v1 import screening_pb2_grpc
from askance.service.pb.inference import inference_pb2, inference_pb2_grpc
from askance.service.runtime.model import LoadedBundle
from askance.service.server import Server

SWAPS = 50


def point(link: Path, target: Path) -> None:
    """Let a link name another folder, in one step."""
    staging = link.with_name("next")
    staging.symlink_to(target)
    staging.replace(link)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two bundles of one classifier that differ in their p-values, and `current`, a link to the first."""
    for name, shift in (("one", 0.0), ("two", 0.7)):
        publish_tiny(tmp_path / name, "service_support:TinyClassifier", shift=shift)
    point(tmp_path / "current", tmp_path / "one")
    return tmp_path


def opener(path: Path) -> Callable[[], LoadedBundle]:
    def build(_factory: str | None, arguments: Any, weights: Any) -> Any:
        return build_tiny("tiny", arguments, weights)

    return lambda: LoadedBundle.open(path, build)


def p_values(path: Path) -> tuple[str, list[float]]:
    """A bundle's id, and what it says of the images that the tests send."""
    served = opener(path)()
    results = served.screen(torch.stack([torch.from_numpy(noise(seed)).float() / 255 for seed in range(10)]))
    served.screen.close()
    return served.bundle_id, [whole(one).fused.p_value for one in results]


def test_fifty_swaps_under_load_lose_and_mix_nothing(folder: Path) -> None:
    expected = dict(p_values(folder / name) for name in ("one", "two"))
    first, second = expected.values()
    assert first != second

    async def main() -> None:
        async with Server(config()) as server:
            await server.deploy(opener(folder / "current"))
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.port}") as channel:
                stub: Any = screening_pb2_grpc.ScreeningStub(channel)  # type: ignore[no-untyped-call]
                answers: Counter[str] = Counter()
                stop = asyncio.Event()

                async def client(number: int) -> None:
                    seed = number
                    while not stop.is_set():
                        seed = (seed + 3) % 10
                        answer = await stub.Screen(request_of(noise(seed)), timeout=30)
                        assert answer.p_value == expected[answer.bundle_id][seed]
                        answers[answer.bundle_id] += 1

                clients = [asyncio.create_task(client(number)) for number in range(8)]
                for swap in range(SWAPS):
                    point(folder / "current", folder / ("two", "one")[swap % 2])
                    before = answers.total()
                    served = await server.reload()
                    assert served.bundle_id == list(expected)[(swap + 1) % 2]
                    # whoever asks after the swap is answered by the new one
                    assert (await stub.Screen(request_of(noise(0)))).bundle_id == served.bundle_id
                    await until(lambda before=before: answers.total() > before)  # type: ignore[misc]
                stop.set()
                await asyncio.gather(*clients)
            assert set(answers) == set(expected)
            value = server.metrics.registry.get_sample_value
            assert value("askance_bundle_reloads_total", {"result": "success"}) == SWAPS
            assert value("askance_bundle_reloads_total", {"result": "failure"}) == 0
            ok = value("askance_requests_total", {"method": "Screen", "code": "OK"})
            assert ok == answers.total() + SWAPS
            info = {"id": served.bundle_id, "classifier": "tiny", "engine": "torch"}
            assert value("askance_bundle_info", info) == 1
            await until(lambda: not server.repository._retiring)

    asyncio.run(main())


def damage(path: Path) -> None:
    weights = path / "calibration.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))


def test_a_bad_candidate_is_refused_and_the_old_one_serves_on(folder: Path) -> None:
    damage(folder / "two")
    publish_tiny(folder / "other", "service_support:TinyClassifier", name="other")

    async def main() -> None:
        async with Server(config()) as server:
            first = await server.deploy(opener(folder / "current"))
            for name, error, line in (
                ("two", BundleError, r"calibration\.safetensors has been altered"),
                ("nothing", BundleError, "is not a bundle"),
                ("other", BundleError, "is of the classifier 'other', this server serves 'tiny': start another server"),
            ):
                point(folder / "current", folder / name)
                with pytest.raises(error, match=line):
                    await server.reload()
            point(folder / "current", folder / "one")
            assert (await server.reload()).bundle_id == first.bundle_id
            value = server.metrics.registry.get_sample_value
            assert value("askance_bundle_reloads_total", {"result": "failure"}) == 3
            assert value("askance_bundle_reloads_total", {"result": "unchanged"}) == 1
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.port}") as channel:
                stub: Any = screening_pb2_grpc.ScreeningStub(channel)  # type: ignore[no-untyped-call]
                assert (await stub.Screen(request_of(noise(0)))).bundle_id == first.bundle_id

    asyncio.run(main())


def test_there_is_nothing_to_reload_before_anything_is_served() -> None:
    async def main() -> None:
        async with Server(config()) as server:
            with pytest.raises(AskanceError, match="nothing is served yet"):
                await server.reload()

    asyncio.run(main())


def test_a_request_under_way_is_answered_by_the_bundle_it_began_with() -> None:
    valve = Valve()
    old = LoadedBundle("a" * 64, CREATED, "tiny", valve, NO_SENTINELS)
    new = LoadedBundle("b" * 64, CREATED, "tiny", tiny_screen(), NO_SENTINELS)

    async def main() -> None:
        async with running(old) as service:
            valve.shut()
            waiting = [asyncio.ensure_future(service.stub.Screen(request_of(marked(0.1))))]
            await until(valve.entered.is_set)
            waiting += [asyncio.ensure_future(service.stub.Screen(request_of(marked(0.1)))) for _ in range(2)]
            await until(lambda: service.value("askance_queue_depth") == 2)
            service.server._load = lambda: new
            assert (await service.server.reload()) is new
            after = asyncio.ensure_future(service.stub.Screen(request_of(marked(0.2))))
            await asyncio.sleep(0.05)
            assert not after.done()  # there is one inference thread
            assert service.value("askance_queue_depth") == 2  # the old one's; the new one's is next for the thread
            valve.opened.set()
            assert {(await call).bundle_id for call in waiting} == {old.bundle_id}
            assert (await after).bundle_id == new.bundle_id
            assert 0.2 not in valve.seen

    asyncio.run(main())


def test_only_an_admin_loads_a_model(folder: Path) -> None:
    token, digest = new_token()
    admin = ClientConfig(name="operator", token_sha256=digest, roles=frozenset({Role.ADMIN}))
    metadata = [("authorization", f"Bearer {token}")]

    def load(name: str = "tiny", **parameters: bool) -> inference_pb2.RepositoryModelLoadRequest:
        request = inference_pb2.RepositoryModelLoadRequest(model_name=name)
        for key, value in parameters.items():
            request.parameters[key].bool_param = value
        return request

    async def main() -> None:
        async with Server(config(clients=(admin,), anonymous=DISCLOSING)) as server:
            await server.deploy(opener(folder / "current"))
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.port}") as channel:
                stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]

                async def version() -> str:
                    answer = await stub.ModelMetadata(inference_pb2.ModelMetadataRequest(name="tiny"))
                    return str(answer.versions[0])

                before = await version()
                point(folder / "current", folder / "two")
                assert (await status_of(stub.RepositoryModelLoad(load())))[0] is grpc.StatusCode.UNAUTHENTICATED
                assert await version() == before
                await stub.RepositoryModelLoad(load(), metadata=metadata)
                assert await version() == Bundle.open(folder / "two").manifest.id[:12] != before
                call = stub.RepositoryModelLoad(load("another"), metadata=metadata)
                assert (await status_of(call))[0] is grpc.StatusCode.NOT_FOUND
                code, line = await status_of(stub.RepositoryModelLoad(load(override=True), metadata=metadata))
                assert (code, line.startswith("parameters: expected none")) == (
                    grpc.StatusCode.INVALID_ARGUMENT,
                    True,
                )
                point(folder / "current", folder / "nothing")
                code, line = await status_of(stub.RepositoryModelLoad(load(), metadata=metadata))
                assert (code, "is not a bundle" in line) == (grpc.StatusCode.FAILED_PRECONDITION, True)

    asyncio.run(main())


@pytest.mark.parametrize("how", ["signal", "watch"])
def test_a_process_swaps_on_a_signal_and_on_a_change(folder: Path, how: str) -> None:
    settings = folder / "server.toml"
    settings.write_text(f"port = 0\nmetrics_port = 0\n[rollout]\nwatch_seconds = {0.1 if how == 'watch' else 0.0}\n")
    with (
        process_serving(folder / "current", "--config", settings) as (process, serving),
        Client(serving.target) as client,
    ):
        first = client.describe().bundle_id
        point(folder / "current", folder / "two")
        if how == "signal":
            os.kill(process.pid, signal.SIGHUP)
        wanted = Bundle.open(folder / "two").manifest.id
        while client.describe().bundle_id != wanted:
            time.sleep(0.02)
        assert client.screen(noise(1)).bundle_id == wanted != first


def test_what_was_refused_is_tried_again(folder: Path) -> None:
    """A bundle whose file was not there yet, or could not be read, is taken up once it is right."""
    settings = folder / "server.toml"
    settings.write_text("port = 0\nmetrics_port = 0\n[rollout]\nwatch_seconds = 0.1\n")
    whole = folder / "two" / "classifier.safetensors"
    away = whole.rename(folder / "away")
    with (
        process_serving(folder / "current", "--config", settings) as (_, serving),
        Client(serving.target) as client,
    ):
        metrics = f"http://127.0.0.1:{serving.metrics_port}/metrics"
        first = client.describe().bundle_id
        point(folder / "current", folder / "two")
        while 'askance_bundle_reloads_total{result="failure"} 0.0' in http_get(metrics)[1]:
            time.sleep(0.02)
        assert client.describe().bundle_id == first
        away.rename(whole)
        wanted = Bundle.open(folder / "two").manifest.id
        while client.describe().bundle_id != wanted:
            time.sleep(0.02)
