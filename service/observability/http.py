"""MetricsServer: a small HTTP endpoint for operators, /metrics for Prometheus and /healthz for probes."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from askance.errors import AskanceError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def server_bind(self) -> None:
        """Bind without http.server's look-up of the host's full name, which can hang without DNS."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _SilentHandler(WSGIRequestHandler):
    timeout = 10  # seconds; a client that says nothing does not keep its thread

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing: probes come every few seconds."""


class MetricsServer:
    """Serves /metrics and /healthz on a daemon thread from construction until `close`.

    /healthz answers 200 while `state()` is "serving", else 503, with the state as its text.

    Args:
        host, port: where to listen; port 0 takes a free one, `port` then says which.
        registry: the metrics.
        state: what the server is doing, in a word.

    Raises:
        AskanceError: the port is in use, or the host is not this machine's.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry, state: Callable[[], str]) -> None:
        metrics = make_wsgi_app(registry)

        def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            path = environ.get("PATH_INFO")
            if environ["REQUEST_METHOD"] != "GET":
                return _plain(start_response, "405 Method Not Allowed", "only GET")
            if path == "/metrics":
                answer: Iterable[bytes] = metrics(environ, start_response)
                return answer
            if path == "/healthz":
                now = state()
                return _plain(start_response, "200 OK" if now == "serving" else "503 Service Unavailable", now)
            return _plain(start_response, "404 Not Found", "see /metrics and /healthz")

        try:
            self._server = (_ServerV6 if ":" in host else _Server)((host, port), _SilentHandler)
        except OSError as error:
            raise AskanceError(cannot_listen("metrics_port", host, port, error)) from None
        self._server.set_app(app)
        self.port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="askance-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def bound_socket(setting: str, host: str, port: int, backlog: int | None = None) -> socket.socket:
    """A socket bound to a port, which the caller closes; with a backlog it listens.

    Raises:
        AskanceError: it is in use, or the host is not this machine's; the message names the setting.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        if backlog is not None:
            bound.listen(backlog)
    except OSError as error:
        bound.close()
        raise AskanceError(cannot_listen(setting, host, port, error)) from None
    return bound


def cannot_listen(setting: str, host: str, port: int, error: OSError | None) -> str:
    """One line for people: which port cannot be listened on, and why."""
    if error is None or error.errno == errno.EADDRINUSE or "in use" in str(error):
        return f"port {port} on {host} is in use: stop what listens there, or choose another {setting} (0 takes any)"
    return f"{setting} {port} on {host} cannot be listened on: {error.strerror or error}"


def _plain(start_response: StartResponse, status: str, text: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]
