"""Config: what an operator may set, read from a TOML file; a misspelt key is an error that names it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from askance.errors import ConfigError, did_you_mean
from askance.service.guard.access import ClientConfig, Role
from askance.service.observability.log import LogFormat, LogLevel
from askance.service.guard.tls import TlsConfig


class Policy(StrEnum):
    """What is done with a verdict.

    Attributes:
        ANNOTATE: it leaves with the prediction.
        BLOCK: the same, but an image judged ADVERSARIAL gets PERMISSION_DENIED and no prediction.
        SHADOW: clients get the prediction alone; verdicts go to the metrics only.
    """

    ANNOTATE = "annotate"
    BLOCK = "block"
    SHADOW = "shadow"


PILLOW_LIMIT = 89_478_485  # Pillow itself objects to images of more pixels
MEBIBYTE = 1024 * 1024


class ServerConfig(BaseModel):
    """The server's settings.

    Attributes:
        host: the address to listen on; "0.0.0.0" or "::" for all.
        port: of gRPC; 0 takes a free one.
        metrics_port: of HTTP, for /metrics and /healthz; 0 takes a free one.
        max_batch: the most images that share one call of the classifier.
        queue_size: the most requests accepted and not yet with the classifier; one more is refused.
        max_in_flight_bytes: of all requests accepted and not yet answered.
        client_rate: images a second from one client (by its address); 0 is no limit.
        client_burst: the most images at once from one client, where there is a rate.
        stream_window: the most requests of one stream in flight; the server reads no further ahead.
        max_image_pixels: the largest encoded image, width x height; judged by its header, before it is decoded.
        max_message_bytes: the largest request.
        decode_threads: how many images are decoded at a time.
        inference_threads: torch's threads inside one call of the classifier; 0 takes one less than the CPUs, so
            that the event loop keeps one: threads that outnumber them cost most of the throughput.
        keepalive_seconds: an idle connection is pinged so often, so that dead ones are noticed.
        max_connection_idle_seconds: a connection without calls is closed after so long; 0 is never.
        max_connection_calls: the most calls of one connection under way; more of them wait at the client.
        max_connection_age_seconds: a connection is closed after so long, its calls finished first, so that clients
            spread over the replicas anew; 0 is never.
        stall_seconds: the server is not ready while the inference thread is at one batch for longer.
        policy: what is done with a verdict: "annotate", "block" or "shadow".
        fail_open: answer an image that the detectors fail on, or have no time for, with the prediction alone (verdict
            UNSCREENED); otherwise with an error.
        reserve_seconds: an image whose deadline is nearer when its turn comes is not screened; 0 screens whatever is
            not too late.
        clients: those that are known, by token or certificate, and what each may do.
        anonymous: what anyone else may do; empty: nothing.
        tls: where the certificates are; None serves in the clear.
        reflection: whether generic clients may ask what there is to call.
        candidate: a bundle that answers only requests that name its version, and screens unseen what the default one
            has answered, while the server has nothing better to do; None is none.
        keep_versions: how many bundles that were replaced still answer requests that name their version.
        watch_seconds: look so often whether another bundle stands where this one (or the candidate) was loaded from; 0
            is never.
        single_pass: leave out the constellation, which needs a forward pass for each of its altered copies; the fused
            score has a calibration of its own for that.
        log_level: the least that is logged: "debug" (a line for each request), "info" (for those flagged, or failed
            here), "warning", "error".
        log_format: "text" for people, "json" for machines.
        traces: send spans to an OpenTelemetry collector, by the standard OTEL_* environment variables.
        notice_seconds: how long a stopping server looks unready and answers all the same, so that load balancers notice
            before it refuses calls.
        drain_seconds: how long a stopping server waits for the requests it has accepted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8500, ge=0, le=65535)
    metrics_port: int = Field(default=9500, ge=0, le=65535)
    max_batch: int = Field(default=32, ge=1, le=4096)
    queue_size: int = Field(default=256, ge=1)
    max_in_flight_bytes: int = Field(default=256 * MEBIBYTE, ge=1024)
    client_rate: float = Field(default=0.0, ge=0)
    client_burst: int = Field(default=64, ge=1)
    stream_window: int = Field(default=64, ge=1)
    max_image_pixels: int = Field(default=16_000_000, ge=1, le=PILLOW_LIMIT)
    max_message_bytes: int = Field(default=16 * MEBIBYTE, ge=1024, le=2**31 - 1)
    decode_threads: int = Field(default=2, ge=1, le=64)
    inference_threads: int = Field(default=0, ge=0, le=1024)
    keepalive_seconds: float = Field(default=60.0, ge=1)
    max_connection_calls: int = Field(default=512, ge=1)
    max_connection_idle_seconds: float = Field(default=0.0, ge=0)
    max_connection_age_seconds: float = Field(default=0.0, ge=0)
    stall_seconds: float = Field(default=30.0, gt=0)
    policy: Policy = Policy.ANNOTATE
    fail_open: bool = False
    reserve_seconds: float = Field(default=0.0, ge=0)
    clients: tuple[ClientConfig, ...] = ()
    anonymous: frozenset[Role] = frozenset({Role.PREDICT})
    tls: TlsConfig | None = None
    reflection: bool = True
    candidate: Path | None = None
    keep_versions: int = Field(default=0, ge=0)
    watch_seconds: float = Field(default=0.0, ge=0)
    single_pass: bool = False
    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.TEXT
    traces: bool = False
    notice_seconds: float = Field(default=0.0, ge=0)
    drain_seconds: float = Field(default=20.0, ge=0)

    @classmethod
    def load(cls, path: Path | None = None, **overrides: Any) -> Self:
        """Read `path` (None: the defaults), then apply the overrides that are not None.

        Files named in `path` are looked for beside it.

        Raises:
            ConfigError: the file cannot be read or is not TOML, or a setting is unknown or out of range.
        """
        content = {} if path is None else _read(path)
        if path is not None:
            content |= {name: _beside(path.parent, content[name]) for name in ("tls", "candidate") if name in content}
        given = {name: value for name, value in overrides.items() if value is not None}
        try:
            return cls.model_validate(content | given)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            source = f"{path}: " if path is not None and name not in given else ""
            if first["type"] == "extra_forbidden":
                known = _settings_at(cls, first["loc"][:-1])
                hint = did_you_mean(str(first["loc"][-1]), known)
                raise ConfigError(f"{source}unknown setting {name!r}: {hint}") from None
            secret = (
                isinstance(first["input"], dict) or "token_sha256" in first["loc"]
            )  # where the token itself may stand
            got = "" if secret else f", got {first['input']!r}"
            raise ConfigError(f"{source}{name}: {_lower(first['msg'])}{got}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _settings_at(model: type[BaseModel], where: tuple[int | str, ...]) -> Iterable[str]:
    """The settings that a table of the file may hold."""
    tables: dict[int | str, type[BaseModel]] = {"clients": ClientConfig, "tls": TlsConfig}
    return tables[where[0]].model_fields if where else model.model_fields


def _beside(folder: Path, named: Any) -> Any:
    """A file name, or a table of them, those that are not absolute taken to be in `folder`."""
    if isinstance(named, dict):
        return {key: _beside(folder, value) for key, value in named.items()}
    return str(folder / named) if isinstance(named, str) else named


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
