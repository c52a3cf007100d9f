"""Config: what an operator may set, read from a TOML file of tables; a misspelt key is an error that names it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError, field_validator

from askance.errors import ConfigError, did_you_mean, listed, telling, unknown_choice
from askance.reading import read_toml
from askance.service.guard.tls import TlsConfig
from askance.service.settings import (
    AccessConfig,
    BundlesConfig,
    ConnectionsConfig,
    Host,
    InferenceConfig,
    LimitsConfig,
    LiveConfig,
    LogConfig,
    MetricsConfig,
    ModelConfig,
    ProbingConfig,
    ReplicasConfig,
    ReviewConfig,
    RolloutConfig,
    ShutdownConfig,
    Table,
    VerdictsConfig,
)

FILES = (
    ("rollout", "candidate"),
    ("bundles", "require_signature"),
    ("review", "folder"),
    ("replicas", "password_file"),
    ("replicas", "ca"),
)
"""Settings that name files, by their tables: those that are not absolute are beside the settings' own file."""
SECRET = {"token_sha256", "store"}
"""Settings whose value is not shown: where the hash of a token is to stand, the token itself may."""
ELSEWHERE_CUTOFF = 0.8  # how alike a misspelt setting must be to one of another table


class ServerConfig(Table):
    """The server's settings.

    Attributes:
        host: the address that clients connect to; "0.0.0.0" or "::" for all.
        port: of gRPC; 0 takes a free one.
        rest_port: of the Open Inference Protocol over HTTP; 0 takes a free one, None serves none.
        metrics_host: the address that /metrics and /healthz are read at; by default this machine alone reads them.
        metrics_port: theirs, of HTTP; 0 takes a free one.
        workers: how many processes screen, each with a classifier and limits of its own; "auto" (or 0) takes as many as
            there are CPUs. Linux alone spreads connections over them.
        bundles, model, inference, limits, connections, verdicts, access: tables.
        metrics, live, probing, replicas, review, rollout, log, shutdown: tables.
        tls: where the certificates are; None serves in the clear.
    """

    host: Host = "127.0.0.1"
    port: int = Field(default=8500, ge=0, le=65535)
    rest_port: int | None = Field(default=None, ge=0, le=65535)
    metrics_host: Host = "127.0.0.1"
    metrics_port: int = Field(default=9500, ge=0, le=65535)
    workers: int = Field(default=1, ge=0, le=1024)
    bundles: BundlesConfig = BundlesConfig()
    model: ModelConfig = ModelConfig()
    inference: InferenceConfig = InferenceConfig()
    limits: LimitsConfig = LimitsConfig()
    connections: ConnectionsConfig = ConnectionsConfig()
    verdicts: VerdictsConfig = VerdictsConfig()
    access: AccessConfig = AccessConfig()
    metrics: MetricsConfig = MetricsConfig()
    live: LiveConfig = LiveConfig()
    probing: ProbingConfig = ProbingConfig()
    replicas: ReplicasConfig = ReplicasConfig()
    review: ReviewConfig = ReviewConfig()
    tls: TlsConfig | None = None
    rollout: RolloutConfig = RolloutConfig()
    log: LogConfig = LogConfig()
    shutdown: ShutdownConfig = ShutdownConfig()

    @field_validator("workers", mode="before")
    @classmethod
    def _auto(cls, workers: object) -> object:
        if isinstance(workers, str) and not (workers.isdigit() or workers == "auto"):
            raise ValueError('expected how many processes, or "auto"')
        return 0 if workers == "auto" else workers

    @property
    def is_shared(self) -> bool:
        """Whether its ports are those of several processes."""
        return self.workers != 1

    @classmethod
    def load(cls, path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read `path` (None: the defaults), then apply the overrides that are not None.

        Files named in `path` are looked for beside it.

        Args:
            path: of a TOML file.
            overrides: by dotted name, such as "rollout.candidate".

        Raises:
            ConfigError: the file cannot be read or is not TOML, or a setting is unknown or out of range.
        """
        content = {} if path is None else _read(path)
        if path is not None:
            _look_beside(path.parent, content)
        given = {name: value for name, value in (overrides or {}).items() if value is not None}
        for name, value in given.items():
            table, _, setting = name.rpartition(".")
            (content.setdefault(table, {}) if table else content)[setting] = value
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise ConfigError(_explained(error, path, given)) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _look_beside(folder: Path, content: dict[str, Any]) -> None:
    """File names that are not absolute are taken to be in the settings' own folder."""
    for table in (content, content.get("metrics")):
        if isinstance(table, dict) and isinstance(tls := table.get("tls"), dict):
            table["tls"] = {key: str(folder / name) if isinstance(name, str) else name for key, name in tls.items()}
    for table_name, name in FILES:
        settings = content.get(table_name)
        if isinstance(settings, dict) and isinstance(settings.get(name), str):
            content[table_name] = settings | {name: str(folder / settings[name])}


def _explained(error: ValidationError, path: Path | None, given: Mapping[str, Any]) -> str:
    """The first thing wrong, in one line."""
    first = telling(error.errors())
    name = ".".join(str(part) for part in first["loc"])
    source = f"{path}: " if path is not None and name not in given else ""
    if first["type"] == "extra_forbidden":
        return f"{source}unknown setting {name!r}: {_hint(first['loc'])}"
    if first["type"] == "missing":
        return f"{source}the setting {name!r} is missing"
    if (unknown := unknown_choice(first)) is not None:
        return f"{source}{name}: {unknown}"
    secret = isinstance(first["input"], dict) or not SECRET.isdisjoint(first["loc"])
    got = "" if secret else f", got {first['input']!r}"
    said = first["msg"].removeprefix("Value error, ")
    return f"{source}{name}: {said[:1].lower()}{said[1:]}{got}"


def _hint(where: tuple[int | str, ...]) -> str:
    """What may have been meant: a setting of the same table, or one that stands in another."""
    *table, leaf = [part for part in where if isinstance(part, str)]
    known = [name for name, _ in _settings(ServerConfig)]
    here = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == ".".join(table)]
    if not difflib.get_close_matches(leaf, here, n=1, cutoff=ELSEWHERE_CUTOFF):
        # by its own name, or by its table's and its own: inference_threads
        elsewhere = {spelt: name for name in known for spelt in (name.rpartition(".")[2], name.replace(".", "_"))}
        near = difflib.get_close_matches(leaf, elsewhere, n=1, cutoff=ELSEWHERE_CUTOFF)
        if near and (found := elsewhere[near[0]]).partition(".")[0] != ".".join(table):
            return f"did you mean {found!r}? known here: {listed(here)}"
    return did_you_mean(leaf, here)


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """All settings by dotted name, tables and what is in them."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", model
        parts = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for part in parts:
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _settings(part, f"{prefix}{name}.")
