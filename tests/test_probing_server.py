"""Clients that probe a live server: who is named, in log and metrics, and what becomes of him, and of nobody else."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from service_support import (
    Running,
    config,
    frames,
    noise,
    process_serving,
    publish_tiny,
    running,
    status_of,
    until,
    wait_for,
)

import askance
from askance.service.call import Call, Identity, Role
from askance.service.config import ServerConfig
from askance.service.errors import StatusError
from askance.service.guard.access import ClientConfig
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.probing import patrol
from askance.service.probing.named import Named
from askance.service.probing.techniques import Technique
from askance.service.settings import ProbingConfig, Response

TOKENS = {"mallory": "m" * 43, "alice": "a" * 43}


def settings(response: str, **more: float) -> ServerConfig:
    clients = [
        {"name": name, "token_sha256": hashlib.sha256(token.encode()).hexdigest()} for name, token in TOKENS.items()
    ]
    access = {"anonymous": {"predict"}, "clients": clients}
    return config(access=access, probing={"response": response, **more})


def request(image: NDArray[np.uint8]) -> pb.ScreenRequest:
    return pb.ScreenRequest(tensor=pb.Tensor(shape=image.shape, dtype=pb.Tensor.UINT8, data=image.tobytes()))


def shown(name: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {TOKENS[name]}")]


def squares() -> Iterator[NDArray[np.uint8]]:
    """What Square asks: a square here and a square there."""
    rng, image = np.random.default_rng(0), noise(0) // 2 + 60
    while True:
        by = np.zeros(image.shape, np.int16)
        top, left = rng.integers(0, 6, 2)
        by[:, top : top + 3, left : left + 3] = rng.choice([-20, 20])
        yield np.clip(image + by, 0, 255).astype(np.uint8)


async def probe(service: Running, questions: int = 60) -> None:
    """Ask as Square does until mallory is refused, and wait until it is named."""
    with suppress(grpc.aio.AioRpcError):
        for image in itertools.islice(squares(), questions):
            await service.stub.Screen(request(image), metadata=shown("mallory"))
    await until(lambda: named(service, "mallory") > 0)


def named(service: Running, client: str) -> float:
    return service.value("askance_probing_clients_total", client=client, technique="squares") or 0.0


def test_who_probes_is_named_in_log_and_metrics_and_answered_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with running(settings=settings("log")) as service:
            with caplog.at_level(logging.WARNING, "askance"):
                await probe(service)
            await service.stub.Screen(request(noise(9)), metadata=shown("mallory"))
            assert [named(service, one) for one in ("mallory", "alice", "anonymous")] == [1, 0, 0]
        record = next(one for one in caplog.records if "probes" in one.message)
        assert record.message.startswith("mallory probes: its images change part after part of one, after ")
        assert (record.__dict__["client"], record.__dict__["technique"]) == ("mallory", "squares")

    asyncio.run(test())


def test_who_probes_is_not_answered_and_everybody_else_is() -> None:
    async def test() -> None:
        async with running(settings=settings("block")) as service:
            await probe(service)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await service.stub.Screen(request(noise(2)), metadata=shown("mallory"))
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "what this client has asked looks like an attack" in (caught.value.details() or "")
            assert (service.value("askance_rejected_total", reason="probing") or 0) >= 1
            await service.stub.Screen(request(noise(1)), metadata=shown("alice"))
            await service.stub.Screen(request(noise(1)))

    asyncio.run(test())


def test_who_probes_is_answered_slowly() -> None:
    async def test() -> None:
        async with running(settings=settings("throttle", throttle_rate=0.001)) as service:
            await probe(service)
            code, details = await status_of(_two(service))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "slow down" in details

    asyncio.run(test())


async def _two(service: Running) -> None:
    for seed in (2, 3):
        await service.stub.Screen(request(noise(seed)), metadata=shown("mallory"))


def test_who_probes_is_let_off_in_the_end() -> None:
    now = 0.0
    blocking = ProbingConfig(response=Response.BLOCK, keep_seconds=60)
    found = patrol.Patrol(blocking, (), CollectorRegistry(), clock=lambda: now)
    call = Call("Screen", "id", address="ipv4:10.0.0.1")
    found.check(call, 1)
    found._name(Named("ipv4:10.0.0.1", Technique.PAIRS, 9, at=0.0))
    found._name(Named("ipv4:10.0.0.1", Technique.UNUSUAL, 9, at=0.0))  # which is the lesser
    with pytest.raises(StatusError, match="looks like an attack"):
        found.check(call, 1)
    found.check(Call("Screen", "id", address="ipv4:10.0.0.2"), 1)
    now = 61.0
    found.check(call, 1)
    found.stop()


def test_whose_images_are_unusual_is_named_and_answered() -> None:
    registry = CollectorRegistry()
    found = patrol.Patrol(ProbingConfig(response=Response.BLOCK), ("a",), registry)
    found._name(Named("a", Technique.UNUSUAL, 20, at=time.time()))
    found.check(Call("Screen", "id", identity=Identity("a", frozenset())), 1)
    found.stop()
    assert registry.get_sample_value("askance_probing_clients_total", {"client": "a", "technique": "unusual"}) == 1


@pytest.mark.parametrize("count", [20, 21])
def test_more_images_that_are_nearly_the_same_than_honest_ones_name_who_asks(count: int) -> None:
    async def test() -> None:
        async with running(settings=settings("block", most_alike=20)) as service:
            for frame in frames(count):
                await service.stub.Screen(request(frame), metadata=shown("alice"))
            await asyncio.to_thread(patrol_of(service).stop)
            assert service.value("askance_probing_clients_total", client="alice", technique="alike") == (count > 20)
            await service.stub.Screen(request(noise(1)), metadata=shown("mallory"))

    asyncio.run(test())


def test_nobody_looks_unless_told() -> None:
    async def test() -> None:
        async with running(settings=config()) as service:
            assert service.value("askance_probing_dropped_total") is None

    asyncio.run(test())


def test_what_comes_too_fast_is_let_go_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        looking, seen = threading.Event(), threading.Event()

        def wait(*_: Any) -> None:
            seen.set()
            looking.wait(60)

        monkeypatch.setattr(patrol, "WAITING", 2)
        monkeypatch.setattr(patrol.Patrol, "_tell", wait)
        async with running(settings=settings("log")) as service:
            for seed in range(6):
                await service.stub.Screen(request(noise(seed)))
                await asyncio.to_thread(seen.wait, 60)
            await until(lambda: service.value("askance_probing_dropped_total") == 3)
            looking.set()

    asyncio.run(test())


def test_a_process_that_has_ended_is_replaced_and_its_images_count_as_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with running(settings=settings("log")) as service:
            first = patrol_of(service)._process
            first.kill()
            await asyncio.to_thread(first.wait)
            await service.stub.Screen(request(noise(0)))
            await until(lambda: service.value("askance_probing_dropped_total") == 1)
            assert patrol_of(service)._process is first  # it has not lasted
            monkeypatch.setattr(patrol, "RESTART_SECONDS", 0.0)
            with caplog.at_level(logging.ERROR, "askance"):
                await service.stub.Screen(request(noise(1)))
                await until(lambda: patrol_of(service)._process is not first)
            assert "the process that looks for who probes has ended (-9)" in caplog.text
            await probe(service)

    asyncio.run(test())


def test_the_process_ends_with_its_server() -> None:
    async def test() -> None:
        async with running(settings=settings("log")) as service:
            looking = patrol_of(service)._process
            assert looking.poll() is None
        assert looking.poll() == 0

    asyncio.run(test())


def lift(url: str, said: object, **headers: str) -> tuple[int, str]:
    """As an operator does."""
    asked = urllib.request.Request(
        f"{url}/live/probing/lift",
        json.dumps(said).encode(),
        {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()},
    )
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_an_operator_lets_off_who_is_named() -> None:
    digest = hashlib.sha256(b"o" * 43).hexdigest()
    operator = ClientConfig(name="operator", token_sha256=digest, roles=frozenset({Role.ADMIN}))
    own = settings("block", most_alike=20)
    access = own.access.model_copy(update={"clients": (*own.access.clients, operator)})
    guarded = own.model_copy(update={"access": access})

    async def test() -> None:
        async with running(settings=guarded) as service:
            for frame in frames(21):
                await service.stub.Screen(request(frame), metadata=shown("mallory"))
            await until(lambda: len(patrol_of(service).roll.listed()) == 1)
            url = f"http://127.0.0.1:{service.server.ports.metrics_port}"
            token = {"Authorization": f"Bearer {'o' * 43}"}
            (one,) = patrol_of(service).roll.listed()
            assert (one.client, one.as_dict()["seen"]) == ("mallory", "too many of its images are nearly the same")

            def ask(said: object, **headers: str) -> tuple[int, str]:
                return lift(url, said, **headers)

            assert (await asyncio.to_thread(ask, "mallory"))[0] == 401
            assert (await asyncio.to_thread(ask, "mallory", **token, Sec_Fetch_Site="cross-site"))[0] == 403
            assert await asyncio.to_thread(ask, "nobody", **token) == (404, "no such client is named\n")
            status, text = await asyncio.to_thread(ask, 3, **token)
            assert (status, text) == (400, "expected a client's name as JSON, a text\n")
            assert await asyncio.to_thread(ask, "mallory", **token) == (200, "true")
            assert patrol_of(service).roll.listed() == []
            await service.stub.Screen(request(noise(2)), metadata=shown("mallory"))

    asyncio.run(test())


def test_workers_tell_each_other_who_probes_and_let_it_off_together(tmp_path: Path) -> None:
    digest = hashlib.sha256(TOKENS["mallory"].encode()).hexdigest()
    (tmp_path / "server.toml").write_text(
        'port = 0\nmetrics_port = 0\nworkers = 2\n[probing]\nresponse = "block"\nmost_alike = 20\n'
        f'[[access.clients]]\nname = "mallory"\ntoken_sha256 = "{digest}"\n'
        f'[[access.clients]]\nname = "operator"\ntoken_sha256 = "{hashlib.sha256(b"o" * 43).hexdigest()}"\n'
        'roles = ["admin"]\n'
    )
    publish_tiny(tmp_path / "bundle", "service_support:TinyClassifier")
    with process_serving(tmp_path / "bundle", "--config", tmp_path / "server.toml") as (_, serving):
        clients = [
            askance.Client(serving.target, credentials=askance.Credentials(token=TOKENS["mallory"])) for _ in range(8)
        ]  # each by a connection of its own, so that both workers have some
        for frame in frames(21):
            clients[0].screen(frame)

        def refused() -> list[bool]:
            return [isinstance(answer_of(client), askance.ServiceError) for client in clients]

        wait_for(lambda: all(refused()))
        url = f"http://127.0.0.1:{serving.metrics_port}"
        assert lift(url, "mallory", Authorization=f"Bearer {'o' * 43}") == (200, "true")
        wait_for(lambda: not any(refused()))
        assert lift(url, "mallory", Authorization=f"Bearer {'o' * 43}")[0] == 404


def answer_of(client: askance.Client) -> object:
    try:
        return client.screen(noise(5))
    except askance.ServiceError as error:
        return error


def patrol_of(service: Running) -> patrol.Patrol:
    assert service.server.patrol is not None
    return service.server.patrol
