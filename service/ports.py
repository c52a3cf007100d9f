"""Ports: those that a server listens on, alone or with others."""

from __future__ import annotations

import socket
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from askance.service.call import Role
from askance.service.config import ServerConfig
from askance.service.guard.access import Access, token_check
from askance.service.guard.looking import Looker
from askance.service.guard.tls import Certificates
from askance.service.live.pages import Pages, Sources
from askance.service.observability.http import MetricsServer, bound_socket
from askance.service.review.store import DAY, ReviewStore
from askance.service.settings import ReviewConfig


def metrics_server(
    config: ServerConfig,
    registry: CollectorRegistry,
    state: Callable[[], str],
    live: Callable[[], bool],
    sources: Sources | None,
) -> MetricsServer:
    """Serve the metrics as the settings say, and the live page where there are sources of it.

    Raises:
        AskanceError: the port is in use, or its host is not this machine's.
        ConfigError: certificates cannot be read.
    """
    token, tls = config.metrics.token_sha256, config.metrics.tls
    return MetricsServer(
        config.metrics_host,
        config.metrics_port,
        registry,
        state,
        live,
        None if token is None else token_check(token),
        None if tls is None else Certificates(tls, "metrics.tls").context(),
        None if sources is None else Pages(sources, _looker(config)),
    )


def review_store(config: ReviewConfig) -> ReviewStore | None:
    """Where requests are kept for review; None where they are not.

    Raises:
        AskanceError: the folder cannot be used.
    """
    if config.folder is None:
        return None
    return ReviewStore(config.folder, config.max_bytes, config.keep_days * DAY)


def held(setting: str, host: str, port: int) -> socket.socket:
    """A socket that keeps a port, 0 for a free one, for processes that share it; it takes no connection itself.

    Raises:
        AskanceError: it is in use, or the host is not this machine's; the message names the setting.
    """
    alone = bound_socket(setting, host, port)  # else two servers would share it in silence
    number = int(alone.getsockname()[1])
    alone.close()
    return bound_socket(setting, host, number, shared=True)


def _looker(config: ServerConfig) -> Looker:
    access = config.access
    return Looker(
        Access(access.clients, access.anonymous),
        config.metrics_host,
        has_admins=Role.ADMIN in access.anonymous.union(*(client.roles for client in access.clients)),
        guarded=bool(access.clients) or config.metrics.token_sha256 is not None,
    )
