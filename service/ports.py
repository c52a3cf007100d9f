"""Ports: those that a server listens on, alone or with others."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry

from askance.errors import ConfigError, extra_needed, one_line
from askance.service.call import Role
from askance.service.config import ServerConfig
from askance.service.guard.access import Access, token_check
from askance.service.guard.looking import Looker
from askance.service.guard.tls import Certificates
from askance.service.live.pages import Pages, Sources
from askance.service.observability.http import MetricsServer, bound_socket
from askance.service.review.store import DAY, ReviewStore
from askance.service.settings import ReplicasConfig, ReviewConfig
from askance.service.store import Store


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


def replicas_store(config: ReplicasConfig) -> Store | None:
    """Where servers meet; None where each is alone. Whether it is there is not asked.

    Raises:
        ConfigError: the extra is not installed, or the password cannot be read.
    """
    if config.store is None:
        return None
    if importlib.util.find_spec("redis") is None:
        raise ConfigError(f"replicas.store: {extra_needed('redis', 'replicas')}")
    return Store(
        config.store, _password(config.password_file), None if config.ca is None else str(config.ca), config.name
    )


def _password(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"replicas.password_file: {path} cannot be read: {one_line(error)}") from None


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
