"""Launch: a server in a process of its own, known by the line it prints when it serves."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from askance.errors import AskanceError

logger = logging.getLogger(__name__)

_LINE = re.compile(
    r"askance: serving bundle (?P<bundle>\w+) on (?P<host>\S+):(?P<port>\d+), "
    r"metrics on (?P<metrics_scheme>https?)://(?P<metrics_host>\S+):(?P<metrics_port>\d+)/metrics"
    r"(, REST on \S+:(?P<rest_port>\d+)/v2)?"
)


@dataclass(frozen=True)
class Serving:
    """What a server says when it serves; `str()` is the line, `parse` reads it.

    Attributes:
        bundle_id: SHA-256 of the bundle (its first 12 digits, when parsed).
        host: the address that clients connect to.
        port: of gRPC.
        metrics_port: of HTTP.
        rest_port: of the Open Inference Protocol over HTTP; None where it is not served.
        metrics_host: the address that the metrics are read at.
        metrics_scheme: "http", or "https".
    """

    bundle_id: str
    host: str
    port: int
    metrics_port: int
    rest_port: int | None = None
    metrics_host: str = "127.0.0.1"
    metrics_scheme: str = "http"

    def __str__(self) -> str:
        host, metrics_host = (f"[{one}]" if ":" in one else one for one in (self.host, self.metrics_host))
        rest = "" if self.rest_port is None else f", REST on {host}:{self.rest_port}/v2"
        return (
            f"askance: serving bundle {self.bundle_id[:12]} on {host}:{self.port}, "
            f"metrics on {self.metrics_scheme}://{metrics_host}:{self.metrics_port}/metrics{rest}"
        )

    @property
    def target(self) -> str:
        """HOST:PORT for a client on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @classmethod
    def parse(cls, line: str) -> Serving | None:
        """Read the line; None if it is another."""
        match = _LINE.match(line)
        if match is None:
            return None
        host, metrics_host = (match[name].removeprefix("[").removesuffix("]") for name in ("host", "metrics_host"))
        rest = None if match["rest_port"] is None else int(match["rest_port"])
        ports = int(match["port"]), int(match["metrics_port"]), rest
        return cls(match["bundle"], host, *ports, metrics_host, match["metrics_scheme"])


def announce(ready: Callable[[Serving], None], serving: Serving) -> None:
    """Say, on a thread of its own, that a server serves; whoever does not listen keeps it from nothing."""

    def say() -> None:
        try:
            ready(serving)
        except (OSError, ValueError, AskanceError) as error:  # closed, full, or nobody reads
            logger.warning("%s; standard output cannot be written: %s", serving, error)

    threading.Thread(target=say, name="askance-ready", daemon=True).start()


@contextmanager
def started(arguments: Sequence[str], **options: Any) -> Iterator[tuple[subprocess.Popen[str], Serving]]:
    """Run `python ARGUMENTS`, a server, from when it serves; it is killed if it outlives the block.

    The process prints the line of Serving when it serves.

    Args:
        arguments: such as ["-m", "askance", "serve", BUNDLE, "--port", "0", "--metrics-port", "0"].
        options: more for `subprocess.Popen`; by default its standard error is ours.

    Raises:
        AskanceError: it ended before it served.
    """
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        assert process.stdout is not None
        try:
            serving = next((said for line in process.stdout if (said := Serving.parse(line))), None)
            if serving is None:
                raise AskanceError(f"the server ended before it served (exit code {process.wait()})")
            yield process, serving
        finally:
            process.kill()


@contextmanager
def launched(arguments: Sequence[str], stop_seconds: float = 30.0) -> Iterator[Serving]:
    """Run `python ARGUMENTS`, a server, until the block ends; then SIGTERM, and wait for it to drain.

    Args:
        arguments: as for `started`.
        stop_seconds: after which a server that does not stop is killed.

    Raises:
        AskanceError: it ended before it served, or did not stop with exit code 0.
    """
    with started(arguments) as (process, serving):
        try:
            yield serving
        finally:
            code = _stop(process, stop_seconds)
        if code != 0:
            raise AskanceError(f"the server stopped with exit code {code}")


def _stop(process: subprocess.Popen[str], seconds: float) -> int:
    process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
