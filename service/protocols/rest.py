"""REST: the Open Inference Protocol v2 over HTTP, on a port of its own, with Triton's extensions as over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from askance.service.call import Call
from askance.service.config import ServerConfig
from askance.service.guard.admission import Kind
from askance.service.guard.endpoint import Endpoints, json_response
from askance.service.guard.tls import Certificates
from askance.service.observability.http import PROBE_VERBS, bound_socket
from askance.service.protocols.base import Parts, Protocol
from askance.service.protocols.inference_core import InferenceCore
from askance.service.protocols.rest_connection import RestConnection
from askance.service.protocols.rest_messages import HEADER_LENGTH, infer_request, infer_response, parameters_of
from askance.service.runtime.screener import SMALL_BYTES

STOP_SECONDS = 1  # for answers to leave, once every call is over
IDLE_SECONDS = 3600  # that a connection without requests is kept, where the settings say for ever
BACKLOG = 2048  # connections that wait to be accepted
MODEL, VERSIONED = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
SLASHES = ("", "/")  # with which a path may end
REPOSITORY = "/v2/repository/models/{model}"


class RestProtocol(Protocol):
    """The protocol's paths under /v2."""

    name: ClassVar[str] = "rest"

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._core = InferenceCore(parts)
        self._endpoints = Endpoints(
            parts.admission, parts.reception, parts.metrics, parts.config.limits.max_message_bytes
        )
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> int | None:
        """Listen on `rest_port`, where there is one.

        Raises:
            AskanceError: it is in use.
            ConfigError: the certificates cannot be read.
        """
        config = self.parts.config
        if config.rest_port is None:
            return None
        bound = bound_socket("rest_port", config.host, config.rest_port, BACKLOG, shared=config.is_shared)
        self._server = _Server(_uvicorn_config(self._application(), config))
        self._serving = asyncio.create_task(self._server.serve([bound]), name="askance-rest")
        return int(bound.getsockname()[1])

    async def stop(self) -> None:
        """Stop listening, answers under way sent."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving

    def _application(self) -> Starlette:
        application = Starlette(
            routes=list(self._routes()),
            exception_handlers={HTTPException: self._endpoints.unknown},
        )
        application.router.redirect_slashes = False
        return application

    def _routes(self) -> Iterator[Route]:
        for verb, method, kind, behaviour, paths in self._TABLE:
            endpoint = self._endpoints.guarded(method, partial(behaviour, self))
            verbs = PROBE_VERBS if kind is Kind.PROBES else (verb,)
            for path in paths:  # not redirected to the other spelling: to many a probe any redirection is a success
                yield from (Route(path + slash, endpoint, methods=verbs) for slash in SLASHES if path + slash)

    async def _live(self, request: Request, body: bytes, call: Call) -> Response:  # noqa: ARG002
        return json_response({"live": True})

    async def _ready(self, request: Request, body: bytes, call: Call) -> Response:  # noqa: ARG002
        return _readiness({}, self._core.is_ready())

    async def _model_ready(self, request: Request, body: bytes, call: Call) -> Response:  # noqa: ARG002
        return _readiness({"name": _model(request)[0]}, self._core.is_model_ready(*_model(request)))

    async def _server_metadata(self, request: Request, body: bytes, call: Call) -> Response:  # noqa: ARG002
        return json_response(self._core.server_metadata())

    async def _model_metadata(self, request: Request, body: bytes, call: Call) -> Response:  # noqa: ARG002
        return json_response(self._core.model_metadata(*_model(request)))

    async def _model_config(self, request: Request, body: bytes, call: Call) -> Response:  # noqa: ARG002
        return json_response(self._core.model_config(*_model(request)))

    async def _statistics(self, request: Request, body: bytes, call: Call) -> Response:  # noqa: ARG002
        return json_response({"model_stats": await self._core.model_statistics(*_model(request))})

    async def _index(self, request: Request, body: bytes, call: Call) -> Response:  # noqa: ARG002
        return json_response(self._core.repository_index())

    async def _load(self, request: Request, body: bytes, call: Call) -> Response:  # noqa: ARG002
        await self._core.load(_model(request)[0], parameters_of(body))
        return json_response({})

    async def _unload(self, request: Request, body: bytes, call: Call) -> Response:  # noqa: ARG002
        await self._core.unload(_model(request)[0], parameters_of(body))
        return json_response({})

    async def _infer(self, request: Request, body: bytes, call: Call) -> Response:
        read = partial(infer_request, body, request.headers.get(HEADER_LENGTH), *_model(request))
        asked = read() if len(body) <= SMALL_BYTES else await asyncio.to_thread(read)
        call.received(asked.id)
        answer = await self._core.infer(asked, call)
        with self.parts.metrics.timed("respond"):
            content, length = infer_response(asked, answer)
        if length is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={HEADER_LENGTH: str(length)}, media_type="application/octet-stream")

    _TABLE: ClassVar = (
        ("GET", "RestServerLive", Kind.PROBES, _live, ("/v2/health/live",)),
        ("GET", "RestServerReady", Kind.PROBES, _ready, ("/v2/health/ready", "")),
        ("GET", "RestServerMetadata", Kind.ASKS, _server_metadata, ("/v2",)),
        (
            "GET", "RestModelStatistics", Kind.ASKS, _statistics,
            ("/v2/models/stats", f"{MODEL}/stats", f"{VERSIONED}/stats"),
        ),
        ("GET", "RestModelMetadata", Kind.ASKS, _model_metadata, (MODEL, VERSIONED)),
        ("GET", "RestModelReady", Kind.PROBES, _model_ready, (f"{MODEL}/ready", f"{VERSIONED}/ready")),
        ("GET", "RestModelConfig", Kind.ASKS, _model_config, (f"{MODEL}/config", f"{VERSIONED}/config")),
        ("POST", "RestModelInfer", Kind.SCREENS, _infer, (f"{MODEL}/infer", f"{VERSIONED}/infer")),
        ("POST", "RestRepositoryIndex", Kind.ASKS, _index, ("/v2/repository/index",)),
        ("POST", "RestRepositoryModelLoad", Kind.ADMINISTERS, _load, (f"{REPOSITORY}/load",)),
        ("POST", "RestRepositoryModelUnload", Kind.ADMINISTERS, _unload, (f"{REPOSITORY}/unload",)),
    )  # fmt: skip
    """HTTP method, name, kind, what answers, and the paths; the first path that fits is taken."""
    methods: ClassVar[Mapping[str, Kind]] = {name: kind for _, name, kind, *_ in _TABLE}


class _Server(uvicorn.Server):
    """Signals are for the process that the server is a part of."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


def _uvicorn_config(application: Starlette, config: ServerConfig) -> uvicorn.Config:
    # not gRPC's: each finds out for itself that the files have changed
    certificates = None if config.tls is None else Certificates(config.tls)
    return uvicorn.Config(
        application,
        http=RestConnection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # a line for each malformed request would let anyone fill the log
        access_log=False,
        proxy_headers=False,  # else whoever connects from this machine may say to be anybody
        server_header=False,
        date_header=False,
        timeout_keep_alive=round(config.connections.max_idle_seconds) or IDLE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
        backlog=BACKLOG,
        ssl_context_factory=None if certificates is None else lambda *_: certificates.context(),
    )


def _model(request: Request) -> tuple[str, str]:
    """The model's name and version, as the path has them; empty where it has none."""
    return request.path_params.get("model", ""), request.path_params.get("version", "")


def _readiness(what: dict[str, Any], ready: bool) -> Response:
    """200, or 400: the protocol wants a 4xx for false."""
    return json_response(what | {"ready": ready}, 200 if ready else 400)
