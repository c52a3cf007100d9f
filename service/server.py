"""Server: assembly and life of the service: listen, load, serve, drain, stop; as a program, see process.py."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from askance.errors import AskanceError, BundleError
from askance.service.config import ServerConfig
from askance.service.errors import StatusError
from askance.service.guard.access import Access
from askance.service.guard.admission import OPEN, Admission, State
from askance.service.guard.health import Health
from askance.service.guard.interceptor import Interceptor
from askance.service.guard.limits import Budget, RateLimit
from askance.service.guard.reception import Reception
from askance.service.guard.tls import Certificates
from askance.service.live.figures import Figures
from askance.service.live.noted import Notes
from askance.service.live.pages import Probing, Sources
from askance.service.observability.http import MetricsServer, bound_socket, cannot_listen
from askance.service.observability.metrics import Metrics
from askance.service.observability.requests import RequestLog
from askance.service.observability.totals import Totals
from askance.service.ports import metrics_server, replicas_store, review_store
from askance.service.probing.named import Named
from askance.service.probing.patrol import Patrol
from askance.service.protocols import INFERENCES, METHODS, PROTOCOLS, SERVICES, Parts
from askance.service.review.keeper import Keeper
from askance.service.runtime.model import LoadedBundle
from askance.service.runtime.repository import ModelRepository
from askance.service.runtime.screener import Screener
from askance.service.settings import ConnectionsConfig, Response
from askance.service.watchdog import Watchdog

logger = logging.getLogger(__name__)

HEALTH_NAMES = ("", *SERVICES)
QUIET_SECONDS = 0.2  # without a call until gRPC stops: on a busy machine they come in bursts
STRAGGLERS_SECONDS = 2.0  # the most that takes
GRPC_STOP_GRACE_SECONDS = 1.0  # for answers to leave once every call is over; health watchers never end by themselves
KEEPALIVE_ANSWER_MS = 20_000  # for a client to answer a ping
PING_SLACK = 0.9  # pings do not arrive as evenly as they are sent


@dataclass(frozen=True)
class BoundPorts:
    """Where a server listens.

    Attributes:
        port: of gRPC.
        metrics_port: of HTTP.
        others: of protocols with a port of their own, by their names.
    """

    port: int
    metrics_port: int
    others: Mapping[str, int] = field(default_factory=dict)


class Peers(Protocol):
    """The processes that are one server together, this one among them.

    Attributes:
        number: this one's.
    """

    number: int

    async def reload(self) -> None:
        """Have each load what is served anew.

        Raises:
            AskanceError: one cannot.
        """

    async def unload(self, version: str) -> None:
        """Have each let go of a version.

        Raises:
            AskanceError: one does not.
        """

    async def totals(self) -> Totals:
        """What they have done so far, added up."""

    def share(self, named: Named) -> None:
        """Tell each of a client that probes."""


class Server:
    """The service on one event loop: `listen`, then `deploy`, then `stop`.

    Used as `async with Server(config) as server`, it listens on entry and stops on exit. One of several that share
    their ports listens once it is deployed: until then others answer. Its metrics are read through them.

    Args:
        config: the settings.
        peers: the processes that share its ports; None where it is alone.
    """

    def __init__(self, config: ServerConfig, peers: Peers | None = None) -> None:
        self.config = config
        self._peers = peers
        pool = config.metrics.pool_requests, config.metrics.pool_seconds
        clients = tuple(client.name for client in config.access.clients)
        self.metrics = Metrics(config.inference.max_batch, tuple(METHODS), clients, *pool)
        self._inference = ThreadPoolExecutor(1, thread_name_prefix="askance-inference")
        self._decoders = ThreadPoolExecutor(config.inference.decode_threads, thread_name_prefix="askance-decode")
        self.repository = ModelRepository(config, self.metrics, self._inference)
        limits = config.limits
        rate = RateLimit(limits.client_rate, limits.client_burst, ipv6_prefix=limits.client_ipv6_prefix)
        self.notes = Notes()
        """The images answered last, where there is a live page."""
        self._figures = Figures(self.metrics.current, self.state)
        self._review = review_store(config.review)
        self._keeper = None
        observers = [self.notes.note] if config.live.page else []
        if self._review is not None:
            self._keeper = Keeper(self._review, config.review.clean_share, self.metrics.registry)
            observers.append(self._keeper.offer)
        self.patrol = None
        """What knows the clients that probe, where one looks for them."""
        if (probing := config.probing).response is not Response.OFF:
            self.patrol = Patrol(
                probing,
                clients,
                self.metrics.registry,
                limits.client_ipv6_prefix,
                (lambda _: None) if peers is None else peers.share,
                replicas_store(config.replicas),
            )
            observers.append(self.patrol.offer)
        elif config.replicas.store is not None:
            logger.warning('replicas.store: there is nothing to share, for probing.response is "off"')
        self.screener = Screener(config, self.metrics, self._decoders, self.repository, rate, observers, self.patrol)
        request_log = RequestLog(self.metrics)
        access = Access(config.access.clients, config.access.anonymous)
        self.admission = Admission(METHODS, self.metrics, request_log, access, rate, self.repository.full)
        self.reception = Reception(Budget(limits.max_in_flight_bytes), limits.max_message_bytes, limits.receive_seconds)
        parts = Parts(
            config,
            self.admission,
            self.reception,
            self.metrics,
            request_log,
            self.repository,
            self.screener,
            self.reload if peers is None else peers.reload,
            self.unload if peers is None else peers.unload,
            self._totals if peers is None else peers.totals,
        )
        self._protocols = [protocol(parts) for protocol in PROTOCOLS.values()]
        self._health = Health(HEALTH_NAMES)
        self._load: Callable[[], LoadedBundle] | None = None
        self._load_candidate: Callable[[], LoadedBundle] | None = None
        self.metrics.watch_queue(self.repository.held)
        self.metrics.watch_stalls(lambda: self._watchdog.stalled)
        self._hurried = asyncio.Event()
        self._watchdog = Watchdog(self.repository.busy_seconds, config.inference.stall_seconds, self._stall)
        self._telling: asyncio.Task[None] | None = None
        self._metrics_server: MetricsServer | None = None
        self._grpc: grpc.aio.Server | None = None

    async def listen(self) -> BoundPorts:
        """Bind all ports and answer, NOT_SERVING and UNAVAILABLE until a bundle is deployed.

        Raises:
            AskanceError: a port is in use, or its host is not this machine's; the message names the port.
            ConfigError: certificates cannot be read.
        """
        config = self.config
        self._watchdog.start()
        if self._peers is None:
            sources = None
            if config.live.page:
                self._figures.start()
                patrol = self.patrol
                probing = None if patrol is None else Probing(patrol.roll.listed, patrol.let_off)
                sources = Sources(self._figures, self.notes.shown, self.activation_map, self._review, probing)
            self._metrics_server = metrics_server(config, self.metrics.registry, self.state, self.live, sources)
        self._grpc = grpc.aio.server(
            interceptors=[
                Interceptor(SERVICES, self.admission, self.reception, self.metrics, config.inference.max_batch)
            ],
            options=[
                ("grpc.so_reuseport", int(config.is_shared)),  # a second server would share an occupied port in silence
                ("grpc.max_receive_message_length", config.limits.max_message_bytes),
                # gRPC unfolds a compressed message whole, up to a thousandfold, before it looks at its size
                ("grpc.compression_enabled_algorithms_bitset", 1 << grpc.Compression.NoCompression),
                *_connection_options(config.connections, config.shutdown.drain_seconds),
            ],
        )
        for protocol in self._protocols:
            protocol.add_to(self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)  # type: ignore[no-untyped-call]
        await self._tell()
        if config.access.reflection:
            reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc)
        credentials = None if config.tls is None else Certificates(config.tls).credentials()
        if not config.is_shared:
            bound_socket("port", config.host, config.port).close()  # gRPC logs lines of its own and hides the cause
        port = _bind(self._grpc, config.host, config.port, credentials)
        await self._grpc.start()
        started = {protocol.name: await protocol.start() for protocol in self._protocols}
        others = {name: port for name, port in started.items() if port is not None}
        metrics_port = config.metrics_port if self._metrics_server is None else self._metrics_server.port
        return BoundPorts(port, metrics_port, others)

    def activation_map(self) -> bytes | None:
        """Of the bundle that answers, as JSON; any thread may ask."""
        try:
            return self.repository.default.bundle.activation_map
        except StatusError:  # nothing is loaded yet
            return None

    async def deploy(
        self, load: Callable[[], LoadedBundle], candidate: Callable[[], LoadedBundle] | None = None
    ) -> LoadedBundle:
        """Load what is to be served, and the candidate, warm them up, and serve; `reload` loads both anew.

        Raises:
            AskanceError: one cannot be loaded, cannot screen an image, or does not fit the limits or the other.
        """
        served, _ = await self.repository.load(load)
        if candidate is not None:
            await self.repository.set_candidate(candidate)
        self._load, self._load_candidate = load, candidate
        self.admission.open()
        await self._tell()
        if self._peers is not None:
            self.ports = await self.listen()
        return served

    async def reload(self) -> LoadedBundle:
        """Load what is served anew, and the candidate; let each take its place if it has changed.

        On failure the one before stays; each is tried whatever becomes of the other.

        Raises:
            AskanceError: as for `deploy`, or nothing is deployed yet.
        """
        if self._load is None:
            raise AskanceError("nothing is served yet: there is nothing to load anew")
        attempts = [self.repository.load(self._load)]
        if self._load_candidate is not None:
            attempts.append(self.repository.set_candidate(self._load_candidate))
        served, *candidate = [await self._replaced(attempt) for attempt in attempts]
        for outcome in (served, *candidate):
            if isinstance(outcome, AskanceError):
                raise outcome
        assert isinstance(served, LoadedBundle)
        return served

    async def unload(self, version: str) -> None:
        """Let go of a version that is not the default one.

        Raises:
            StatusError: FAILED_PRECONDITION, it is the default one; NOT_FOUND, it is not loaded.
        """
        self.repository.unload(version)

    async def _totals(self) -> Totals:
        return Totals(self.metrics.registry.collect(), INFERENCES)

    async def _replaced(self, attempt: Awaitable[tuple[LoadedBundle, bool]]) -> LoadedBundle | AskanceError:
        """What came of an attempt, counted and logged."""
        try:
            served, changed = await attempt
        except Exception as error:
            self.metrics.reloaded("failure")
            logger.error("a bundle is refused: %s", error)
            if isinstance(error, AskanceError):
                return error
            return BundleError(f"the bundle cannot be loaded: {type(error).__name__}, see the log")
        self.metrics.reloaded("success" if changed else "unchanged")
        return served

    def _stall(self) -> None:
        """Refuse calls while the inference thread does not come back."""
        self.admission.stall(self._watchdog.stalled)
        self._telling = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        """Have gRPC's health service say what is the case."""
        await self._health.set(serving=self.admission.state is State.SERVING)

    def live(self) -> bool:
        """Whether it still does anything; any thread may ask."""
        return not self._watchdog.hung

    def state(self) -> str:
        """What the server is doing, as any thread may ask: an event loop that hangs cannot say so itself."""
        state = self.admission.state
        return (State.STALLED if state in OPEN and self._watchdog.stalled else state).value

    async def stop(self) -> None:
        """Drain and stop: NOT_SERVING; after `lame_duck_seconds` new calls UNAVAILABLE, accepted ones answered for up
        to `drain_seconds`.

        A call of the classifier under way is always finished: a thread cannot be interrupted.
        """
        self.admission.leave()
        await self._health.leave()
        if self.admission.state is State.LAME_DUCK:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurried.wait(), self.config.shutdown.lame_duck_seconds)
        self.admission.close()
        try:
            await asyncio.wait_for(self.admission.drained.wait(), self.config.shutdown.drain_seconds)
        except TimeoutError:
            logger.warning("%g seconds were not enough to answer all calls", self.config.shutdown.drain_seconds)
        for protocol in self._protocols:
            await protocol.stop()
        await self.repository.stop()
        if self._grpc is not None:
            await self._refuse_stragglers()
            await self._grpc.stop(GRPC_STOP_GRACE_SECONDS)
        if self._metrics_server is not None:
            await asyncio.to_thread(self._metrics_server.close)
        await asyncio.to_thread(self._figures.stop)
        if self._keeper is not None:
            await asyncio.to_thread(self._keeper.stop)
        if self.patrol is not None:
            await asyncio.to_thread(self.patrol.stop)
        self._watchdog.stop()
        for executor in (self._inference, self._decoders):
            executor.shutdown(cancel_futures=True)

    async def _refuse_stragglers(self) -> None:
        """Go on refusing until calls stop coming, for a moment at most.

        A call that waits inside gRPC when it stops ends as CANCELLED, which clients do not try elsewhere.
        """
        for _ in range(round(STRAGGLERS_SECONDS / QUIET_SECONDS)):
            arrived = self.admission.arrived
            await asyncio.sleep(QUIET_SECONDS)
            if self.admission.arrived == arrived:
                return

    def hurry(self) -> None:
        """Let a `stop` under way wait no longer."""
        self._hurried.set()
        self.admission.drained.set()

    async def __aenter__(self) -> Self:
        try:
            if self._peers is None:
                self.ports = await self.listen()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _connection_options(connections: ConnectionsConfig, drain_seconds: float) -> list[tuple[str, int]]:
    """gRPC's own settings for connections: dead ones are found, idle and old ones are closed, gently."""
    options = [
        ("grpc.keepalive_time_ms", round(1000 * connections.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_ANSWER_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", round(1000 * PING_SLACK * connections.min_ping_seconds)),
        ("grpc.max_concurrent_streams", connections.max_calls),
        ("grpc.http2.bdp_probe", 0),  # else megabytes of each message come in before anybody asks for it
    ]
    if connections.max_idle_seconds:
        options.append(("grpc.max_connection_idle_ms", round(1000 * connections.max_idle_seconds)))
    if connections.max_age_seconds:
        options.append(("grpc.max_connection_age_ms", round(1000 * connections.max_age_seconds)))
        options.append(("grpc.max_connection_age_grace_ms", round(1000 * drain_seconds)))
    return options


def _bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    """Bind gRPC's port."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError:  # taken since
        raise AskanceError(cannot_listen("port", host, port, None)) from None
