"""Two servers behind HAProxy, by the configuration in deploy/: how calls spread, and what is lost when one ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families
from service_support import SERVE, http_get, noise, publish_tiny, until

from askance.answers import Answer
from askance.detectors import Bundle
from askance.images import ImageLike
from askance.service.client import Client
from askance.service.client_messages import Credentials, ServiceError, request_of
from askance.service.guard.access import new_token
from askance.service.launch import Serving, started
from askance.service.pb.askance.v1 import screening_pb2_grpc

TESTS = Path(__file__).parent
SHIPPED = TESTS.parent / "deploy" / "haproxy" / "haproxy.cfg"
NAMES = ("one", "two")  # of the servers in it
CLIENTS = 16
LOCALHOST = "127.0.0.1"

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed: apt-get install haproxy"),
]

NOTICE = 5  # seconds; HAProxy notices in less than one

RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": "askance.v1.Screening"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


def sample(url: str, name: str, **labels: str) -> float:
    """One value of a page of metrics."""
    families = text_string_to_metric_families(http_get(url)[1])
    return next(one.value for family in families for one in family.samples if (one.name, one.labels) == (name, labels))


@dataclass
class Replica:
    """A server in a process of its own. Its answers name a bundle that no other has."""

    bundle_id: str
    serving: Serving
    process: subprocess.Popen[str]

    def requests(self, method: str = "Screen") -> float:
        """How many it has answered."""
        url = f"http://{LOCALHOST}:{self.serving.metrics_port}/metrics"
        return sample(url, "askance_requests_total", method=method, code="OK")


@contextmanager
def process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the block."""
    with subprocess.Popen(command, text=True, **options) as started:
        try:
            yield started
        finally:
            started.kill()


@contextmanager
def replica(bundle: Bundle, settings: Path, ports: tuple[int, int] = (0, 0)) -> Iterator[Replica]:
    """`askance serve`, from when it serves."""
    arguments = [str(bundle.path), "--config", str(settings), "--port", str(ports[0]), "--metrics-port", str(ports[1])]
    with started(["-c", SERVE, *arguments]) as (server, serving):
        yield Replica(bundle.manifest.id, serving, server)


@dataclass
class Cluster:
    """HAProxy before two replicas.

    Attributes:
        target: where clients connect.
        stats: HAProxy's own metrics.
        folder: its socket for commands, and the replicas' settings.
        replicas: by their names in the configuration.
    """

    target: str
    stats: str
    folder: Path
    replicas: dict[str, Replica]

    def up(self, name: str) -> bool:
        """Whether HAProxy gives a replica new calls."""
        return sample(self.stats, "haproxy_server_status", proxy="askance", server=name, state="UP") == 1

    def held(self, name: str) -> float:
        """Calls that HAProxy has given a replica and that are not over."""
        return sample(self.stats, "haproxy_server_current_sessions", proxy="askance", server=name)

    def connections(self) -> float:
        """Connections of clients so far."""
        return sample(self.stats, "haproxy_frontend_connections_total", proxy="grpc")

    def command(self, line: str) -> None:
        """Tell HAProxy; where it does as it is told, it answers with an empty line."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.folder / "socket"))
            connection.sendall(f"{line}\n".encode())
            with connection.makefile() as answer:
                assert answer.read().strip() == ""

    @asynccontextmanager
    async def stub(self, service_config: Mapping[str, Any] | None = None) -> AsyncIterator[Any]:
        """A client with a connection of its own, which tries nothing again unless it is told to."""
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", int(service_config is not None)),
            ("grpc.service_config", json.dumps(service_config or {})),
        ]
        async with grpc.aio.insecure_channel(self.target, options=options) as channel:
            yield screening_pb2_grpc.ScreeningStub(channel)  # type: ignore[no-untyped-call]


@contextmanager
def cluster_of(
    folder: Path, bundles: Mapping[str, Bundle], configuration: str, settings: str = ""
) -> Iterator[Cluster]:
    """Both replicas and HAProxy, until the block ends."""
    (folder / "haproxy.cfg").write_text(configuration)
    (folder / "server.toml").write_text(f"[shutdown]\nlame_duck_seconds = {NOTICE}\n{settings}")
    with ExitStack() as stack:
        with ThreadPoolExecutor() as pool:  # both at once
            starting = [replica(bundles[name], folder / "server.toml") for name in NAMES]
            replicas = dict(zip(NAMES, pool.map(stack.enter_context, starting), strict=True))
        # HAProxy gets sockets that listen already: nobody can take a port meanwhile
        sockets = [stack.enter_context(socket.create_server((LOCALHOST, 0))) for _ in range(2)]
        environment = {
            "ASKANCE_BIND": f"fd@{sockets[0].fileno()}",
            "ASKANCE_STATS": f"fd@{sockets[1].fileno()}",
            "ASKANCE_SOCKET": str(folder / "socket"),
            "ASKANCE_PEM": str(folder / "haproxy.pem"),
            "ASKANCE_CA": str(folder / "ca.pem"),
        }
        for name, one in replicas.items():
            environment[f"ASKANCE_{name.upper()}"] = one.serving.target
            environment[f"ASKANCE_{name.upper()}_METRICS_PORT"] = str(one.serving.metrics_port)
        command = ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]
        log = stack.enter_context((folder / "log").open("w"))
        files = [one.fileno() for one in sockets]
        stack.enter_context(process(command, env=os.environ | environment, pass_fds=files, stdout=log, stderr=log))
        target, stats = (f"{LOCALHOST}:{one.getsockname()[1]}" for one in sockets)
        yield Cluster(target, f"http://{stats}/metrics", folder, replicas)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """One for each replica, so that an answer tells whose it is."""
    folder = tmp_path_factory.mktemp("bundles")
    for name, shift in zip(NAMES, (0.0, 0.7), strict=True):
        publish_tiny(folder / name, "service_support:TinyClassifier", shift=shift)
    return {name: Bundle.open(folder / name) for name in NAMES}


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a short name: the path of a Unix socket must be short."""
    return tmp_path_factory.mktemp("h")


@pytest.fixture
def cluster(folder: Path, bundles: Mapping[str, Bundle]) -> Iterator[Cluster]:
    """The configuration as it is shipped."""
    with cluster_of(folder, bundles, SHIPPED.read_text()) as one:
        yield one


@dataclass
class Load:
    """What clients that call without pause were told.

    Attributes:
        answers: by bundle.
        failures: by status.
    """

    answers: Counter[str] = field(default_factory=Counter)
    failures: Counter[grpc.StatusCode] = field(default_factory=Counter)


@asynccontextmanager
async def load(stub: Any, resume: asyncio.Event | None = None) -> AsyncIterator[Load]:
    """CLIENTS of them on one connection, until the block ends. One that failed calls again once it may `resume`."""
    told, stop = Load(), asyncio.Event()

    async def client(number: int) -> None:
        while not stop.is_set():
            try:
                answer = await stub.Screen(request_of(noise(number)), timeout=60)
            except grpc.aio.AioRpcError as error:
                told.failures[error.code()] += 1
                if resume is not None:
                    await resume.wait()
            else:
                told.answers[answer.bundle_id] += 1

    clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
    try:
        yield told
    finally:
        stop.set()
        await asyncio.gather(*clients)


def test_haproxy_takes_the_defaults_without_a_warning() -> None:
    command = ["haproxy", "-c", "-dW", "-f", str(SHIPPED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_calls_of_one_connection_spread_over_both(cluster: Cluster) -> None:
    async def main() -> None:
        async with cluster.stub() as stub:
            for number in range(200):
                await stub.Screen(request_of(noise(number)))

    asyncio.run(main())
    assert cluster.connections() == 1
    shares = [one.requests() for one in cluster.replicas.values()]
    assert sum(shares) == 200
    assert min(shares) >= 200 / 3


def test_streams_and_large_messages_pass(cluster: Cluster) -> None:
    first, second = (one.bundle_id for one in cluster.replicas.values())
    images: list[ImageLike] = [noise(1), b"no image", *(noise(number) for number in range(2, 50))]
    with Client(cluster.target) as client:
        streams = [list(client.screen_many(images)) for _ in range(2)]
        for answers in streams:
            assert isinstance(answers[1], ServiceError)
            assert answers[1].code is grpc.StatusCode.INVALID_ARGUMENT
            assert [i for i, one in enumerate(answers) if isinstance(one, Answer)] == [0, *range(2, len(images))]
        named = [{one.bundle_id for one in answers if isinstance(one, Answer)} for answers in streams]
        assert sorted(named, key=list) == sorted([{first}, {second}], key=list)  # a stream stays with its replica
        # a message within the replica's limit arrives whole, and the limit is the replica's, not HAProxy's
        for mebibytes, code in ((15, grpc.StatusCode.INVALID_ARGUMENT), (17, grpc.StatusCode.RESOURCE_EXHAUSTED)):
            with pytest.raises(ServiceError) as caught:
                client.screen(bytes(mebibytes * 2**20))
            assert caught.value.code is code


def test_a_killed_replica_loses_what_it_held_and_a_client_that_retries_nothing(cluster: Cluster) -> None:
    victim, survivor = cluster.replicas.values()

    async def main() -> None:
        gone = asyncio.Event()
        async with (
            cluster.stub() as plain,
            cluster.stub(RETRIES) as retrying,
            load(plain, gone) as lost,
            load(retrying) as kept,
        ):
            await until(lambda: min(lost.answers[victim.bundle_id], kept.answers[victim.bundle_id]) > 10)
            # a frozen replica keeps what it is given, until every client waits for it
            os.kill(victim.process.pid, signal.SIGSTOP)
            await until(lambda: cluster.held("one") == 2 * CLIENTS)
            answered = survivor.requests()
            victim.process.kill()
            # its connections end one after the other: who calls at once may reach it by one that ends next
            await asyncio.to_thread(victim.process.wait)
            await until(lambda: lost.failures.total() == CLIENTS)
            gone.set()
            await until(lambda: not cluster.up("one"))
            await until(lambda: survivor.requests() > answered + 200)
        assert lost.failures == {grpc.StatusCode.UNAVAILABLE: CLIENTS}
        assert kept.failures == {}

    asyncio.run(main())


def test_sigterm_costs_nobody_an_answer(cluster: Cluster) -> None:
    leaving, staying = cluster.replicas.values()

    async def main() -> None:
        async with (
            cluster.stub() as plain,
            load(plain) as told,
        ):
            await until(lambda: told.answers[leaving.bundle_id] > 10)
            leaving.process.terminate()
            await until(lambda: leaving.process.poll() is not None)
            answered = staying.requests()
            await until(lambda: staying.requests() > answered + 200)
        # whom HAProxy sends there before it has noticed is answered all the same, without trying again
        assert told.failures == {}
        assert leaving.process.returncode == 0

    asyncio.run(main())


def test_a_rolling_restart_costs_nobody_an_answer(cluster: Cluster, bundles: Mapping[str, Bundle]) -> None:
    old = cluster.replicas["one"]
    ports = old.serving.port, old.serving.metrics_port

    async def main() -> None:
        with ExitStack() as stack:
            async with cluster.stub() as plain, load(plain) as told:
                await until(lambda: told.answers[old.bundle_id] > 10)
                cluster.command("set server askance/one state drain")
                await until(lambda: cluster.held("one") == 0)
                old.process.terminate()
                assert await asyncio.to_thread(old.process.wait) == 0
                starting = replica(bundles["one"], cluster.folder / "server.toml", ports)
                new = await asyncio.to_thread(stack.enter_context, starting)
                cluster.command("set server askance/one state ready")
                await until(lambda: new.requests() > 10)
            assert told.failures == {}
            assert min(told.answers.values()) > 10

    asyncio.run(main())


def test_tls_on_both_sides_and_clients_by_their_tokens(folder: Path, bundles: Mapping[str, Bundle]) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name, identities in (("haproxy", [LOCALHOST]), ("server", ["askance"])):
        certificate = authority.issue_cert(*identities)
        certificate.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")
    token, digest = new_token()
    settings = f"""
        [access]
        anonymous = []
        [[access.clients]]
        name = "gateway"
        token_sha256 = "{digest}"
        [tls]
        certificate = "server.pem"
        key = "server.pem"
    """
    configuration = re.sub(r".* proto h2.*\n", "", SHIPPED.read_text()).replace("#tls ", "")
    with cluster_of(folder, bundles, configuration, settings) as cluster:
        with Client(cluster.target, credentials=Credentials(folder / "ca.pem", token)) as client:
            answers = [client.screen(noise(number)).bundle_id for number in range(10)]
            assert set(answers) == {bundle.manifest.id for bundle in bundles.values()}
        with Client(cluster.target, credentials=Credentials(folder / "ca.pem")) as client:
            with pytest.raises(ServiceError) as caught:
                client.screen(noise(1))
            assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
        assert all(map(cluster.up, NAMES))
