"""Servers that look together for who probes, through a real Redis: who spreads over them, who leads, what is away."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from service_support import config, frames, free_port, http_get, noise, process_serving, publish_tiny, running, wait_for

import askance
from askance.answers import Verdict
from askance.errors import ConfigError
from askance.service.config import ServerConfig
from askance.service.ports import replicas_store
from askance.service.probing import lookout
from askance.service.probing.fellows import Fellows
from askance.service.probing.lines import Asked, Away, Found, Known, LetOff, Options, Said, line
from askance.service.probing.techniques import Technique
from askance.service.settings import ReplicasConfig
from askance.service.store import Store

pytestmark = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="redis-server is not installed: apt-get install redis-server"
)
PASSWORD = "open sesame"


class Redis:
    """A real one, on this machine, for as long as it is let be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--requirepass", PASSWORD, "--save", "", "--dir", self.folder],
            stdout=subprocess.DEVNULL,
        )
        connection = self.store().connect()
        wait_for(lambda: _answers(connection))
        connection.close()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def store(self, password: str = PASSWORD, name: str = "askance") -> Store:
        return Store(f"redis://127.0.0.1:{self.port}/0", password, None, name)


def _answers(connection: object) -> bool:
    import redis

    with suppress(redis.RedisError):
        assert isinstance(connection, redis.Redis)
        return bool(connection.ping())
    return False


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    yield server
    server.stop()


class Lookout:
    """One of the fellows, and what it says."""

    def __init__(self, store: Store, keep_seconds: float = 60.0, most_alike: int = 20) -> None:
        self.store, self.said = store, list[Said]()
        self.fellows = Fellows(Options(keep_seconds, 2**26, most_alike, store), store, self.said.append)

    def ask(self, client: str, image: NDArray[np.uint8]) -> None:
        self.fellows.see(Asked(client, 0, Verdict.CLEAN, image.size), image.reshape(-1))

    def heard(self, kind: type[Found] | type[Known]) -> list[tuple[str, Technique]]:
        return [(one.named.client, one.named.technique) for one in self.said if isinstance(one, kind)]


@pytest.fixture
def lookouts(redis_server: Redis) -> Iterator[list[Lookout]]:
    """Two of them."""
    both = [Lookout(redis_server.store()) for _ in range(2)]
    yield both
    for one in both:
        one.fellows.stop()


def test_who_spreads_over_servers_is_found_by_one_and_known_to_all(lookouts: list[Lookout]) -> None:
    for place, frame in enumerate(frames(21)):
        lookouts[place % 2].ask("mallory", frame)
    expected = [("mallory", Technique.ALIKE)]
    wait_for(lambda: [said for one in lookouts for said in one.heard(Found)] == expected)
    wait_for(lambda: [said for one in lookouts for said in one.heard(Known)] == expected)
    assert sorted(len(one.heard(Found)) for one in lookouts) == [0, 1]
    for one in lookouts:
        one.ask("alice", noise(1))
        assert [said for said in one.said if isinstance(said, Away)] == [Away(None)]


def test_servers_of_another_name_are_others(redis_server: Redis) -> None:
    ours, theirs = (Lookout(redis_server.store(name=name)) for name in ("ours", "theirs"))
    for place, frame in enumerate(frames(40)):
        (ours, theirs)[place % 2].ask("mallory", frame)
    time.sleep(1.5)
    assert [one.heard(Found) for one in (ours, theirs)] == [[], []]
    for one in (ours, theirs):
        one.fellows.stop()


def test_who_takes_over_knows_what_the_one_before_it_knew(redis_server: Redis) -> None:
    """A lookout that is killed while it leads: nobody releases its lease."""
    store, shots = redis_server.store(), list(frames(21))
    killed = subprocess.Popen(
        [sys.executable, "-m", lookout.__name__], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert killed.stdin is not None
    killed.stdin.write(line(Options(60.0, 2**26, 20, store)))
    for shot in shots[:15]:
        killed.stdin.write(line(Asked("mallory", 0, Verdict.CLEAN, shot.size)) + shot.tobytes())
    killed.stdin.flush()
    connection = store.connect()
    wait_for(lambda: connection.get(store.key("seen")))
    killed.kill()
    killed.wait()
    other = Lookout(store)
    for shot in shots[15:]:
        other.ask("mallory", shot)
    wait_for(lambda: other.heard(Found) == [("mallory", Technique.ALIKE)])
    other.fellows.stop()


def test_who_is_named_already_is_not_named_again_by_who_takes_over(lookouts: list[Lookout]) -> None:
    first, second = lookouts
    for frame in frames(21):
        first.ask("mallory", frame)
    wait_for(lambda: first.heard(Found) + second.heard(Found))
    leads, other = (first, second) if first.heard(Found) else (second, first)
    leads.fellows.stop()
    for frame in frames(3):
        other.ask("mallory", frame)  # looked at by the other, after all that it was not told of
    connection = leads.store.connect()
    asked: Any = connection.xrevrange(leads.store.key("asked"), count=1)
    last = asked[0][0]
    wait_for(lambda: connection.get(leads.store.key("seen")) == last)
    assert (other.heard(Found), other.heard(Known)) == ([], [("mallory", Technique.ALIKE)])


def test_who_is_let_off_at_one_server_is_let_off_at_all(lookouts: list[Lookout]) -> None:
    first, second = lookouts
    first.fellows.let_off("mallory")
    wait_for(lambda: LetOff("mallory") in second.said)
    second.fellows.let_off("alice")
    wait_for(lambda: LetOff("alice") in first.said)
    assert LetOff("mallory") not in first.said


def test_a_server_that_comes_later_knows_who_is_named_for_as_long_as_that_holds(redis_server: Redis) -> None:
    first = Lookout(redis_server.store())
    for frame in frames(21):
        first.ask("mallory", frame)
    wait_for(lambda: first.heard(Found))
    later = Lookout(redis_server.store())
    wait_for(lambda: later.heard(Known) == [("mallory", Technique.ALIKE)])
    time.sleep(0.3)
    too_late = Lookout(redis_server.store(), keep_seconds=0.1)
    time.sleep(1.0)
    assert too_late.heard(Known) == []
    for one in (first, later, too_late):
        one.fellows.stop()


def test_while_the_store_is_away_each_looks_alone_and_after_it_together(redis_server: Redis) -> None:
    one = Lookout(redis_server.store())
    wait_for(lambda: one.said == [Away(None)])
    redis_server.stop()
    shots = list(frames(63))
    for shot in shots[:21]:
        one.ask("mallory", shot)
    assert one.heard(Found) == [("mallory", Technique.ALIKE)]
    (away,) = one.said[1:2]
    assert isinstance(away, Away)
    assert "onnection" in (away.why or "")
    redis_server.start()
    wait_for(lambda: one.said.count(Away(None)) == 2)
    other = Lookout(redis_server.store())
    for place, shot in enumerate(shots[21:42]):
        (one, other)[place % 2].ask("eve", shot)
    wait_for(lambda: ("eve", Technique.ALIKE) in one.heard(Found) + other.heard(Found))
    for each in (one, other):
        each.fellows.stop()


def test_a_store_that_does_not_answer_or_takes_nothing_is_away(redis_server: Redis) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        deaf = Lookout(Store(url, None, None, "askance"))
        for frame in frames(21):
            deaf.ask("mallory", frame)
        assert deaf.said[0] == Away("TimeoutError: Timeout reading from socket")
        assert deaf.heard(Found) == [("mallory", Technique.ALIKE)]
        deaf.fellows.stop()
    stranger = Lookout(redis_server.store(password="sesame open"))
    assert "password" in str(stranger.said)
    stranger.fellows.stop()
    full = Lookout(redis_server.store())
    wait_for(lambda: full.said == [Away(None)])
    redis_server.store().connect().config_set("maxmemory", 1)
    wait_for(lambda: full.said[1:] and "maxmemory" in str(full.said[1]))
    time.sleep(1.5)
    assert len(full.said) == 2  # it can be read, but is away for all that
    full.fellows.stop()


def test_what_others_write_into_the_store_is_passed_over(redis_server: Redis) -> None:
    store = redis_server.store()
    connection = store.connect()
    foreign: tuple[dict[Any, Any], ...] = (
        {"x": "y"},
        {"asked": "{", "image": b"", "said": "{", "by": "z"},
        {"asked": line(LetOff("a")), "said": line(Away(None))},
        {"asked": line(Asked("a", 0, Verdict.CLEAN, 64)), "image": b""},
    )
    for stream in ("asked", "named"):
        for fields in foreign:
            connection.xadd(store.key(stream), fields)
    one = Lookout(store)
    for frame in frames(21):
        one.ask("mallory", frame)
    wait_for(lambda: one.heard(Found) == [("mallory", Technique.ALIKE)])
    assert one.said[0] == Away(None)
    assert all(isinstance(said, (Found, Away)) for said in one.said)
    one.fellows.stop()


def test_what_was_asked_is_forgotten(redis_server: Redis) -> None:
    store = redis_server.store()
    one = Lookout(store, keep_seconds=0.2)
    one.ask("alice", noise(0))
    connection = store.connect()
    wait_for(lambda: connection.get(store.key("seen")))
    wait_for(lambda: connection.xlen(store.key("asked")) == 0)
    one.fellows.stop()


# --- servers ---


def test_two_servers_and_one_who_probes(redis_server: Redis, tmp_path: Path) -> None:
    publish_tiny(tmp_path / "bundle", "service_support:TinyClassifier")
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    (tmp_path / "server.toml").write_text(
        'port = 0\nmetrics_port = 0\n[probing]\nresponse = "block"\nmost_alike = 20\n'
        f'[replicas]\nstore = "redis://127.0.0.1:{redis_server.port}/0"\npassword_file = "password"\n'
    )
    arguments = tmp_path / "bundle", "--config", tmp_path / "server.toml"
    with process_serving(*arguments) as (_, one), process_serving(*arguments) as (_, other):
        metrics = [f"http://127.0.0.1:{serving.metrics_port}/metrics" for serving in (one, other)]
        wait_for(lambda: all("askance_replicas_apart 0.0" in http_get(url)[1] for url in metrics))
        clients = [askance.Client(serving.target) for serving in (one, other)]
        for place, frame in enumerate(frames(21)):
            clients[place % 2].screen(frame)
        wait_for(lambda: all(_is_refused(client) for client in clients))
        redis_server.stop()
        wait_for(lambda: all("askance_replicas_apart 1.0" in http_get(url)[1] for url in metrics))
        assert all(_is_refused(client) for client in clients)  # what is known stays known
        with process_serving(*arguments) as (_, late):  # a server starts without its store
            assert askance.Client(late.target).screen(noise(0)).verdict == "CLEAN"


def _is_refused(client: askance.Client) -> bool:
    try:
        client.screen(noise(5))
    except askance.ServiceError as error:
        assert "looks like an attack" in str(error)
        return True
    return False


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            'store = "http://here:6379"',
            "replicas.store: expected an address that begins with redis://, rediss:// or unix://",
        ),
        (
            'store = "redis://:hunter2@here:6379"',
            "replicas.store: a password stands in it: put it into a file, and the file's name into "
            "replicas.password_file",
        ),
        ('name = "a b"', "replicas.name: string should match pattern '^[A-Za-z0-9_.-]{1,128}$', got 'a b'"),
    ],
)
def test_what_cannot_be_a_store_is_refused(settings: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text(f"[replicas]\n{settings}\n")
    with pytest.raises(ConfigError) as caught:
        ServerConfig.load(path)
    assert str(caught.value) == f"{path}: {said}"


def test_a_password_that_cannot_be_read_and_an_extra_that_is_missing_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up = ReplicasConfig(store="redis://here", password_file=tmp_path / "none")
    with pytest.raises(ConfigError, match=r"^replicas.password_file: .*none cannot be read: "):
        replicas_store(set_up)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"^replicas.store: redis is not installed: install askance with its extra 'replicas'"
    ):
        replicas_store(set_up)
    assert replicas_store(ReplicasConfig()) is None


def test_a_store_without_anything_to_share_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with running(settings=config(store="redis://here")):
            pass

    with caplog.at_level("WARNING", "askance"):
        asyncio.run(test())
    assert 'replicas.store: there is nothing to share, for probing.response is "off"' in caplog.messages
