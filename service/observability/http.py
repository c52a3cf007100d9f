"""MetricsServer: a small HTTP endpoint for operators, /metrics for Prometheus, /healthz and /livez for probes."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from askance.errors import AskanceError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)

PROBE_VERBS = ("GET", "HEAD", "OPTIONS")  # the last is what HAProxy's `option httpchk` sends unless told otherwise
PROBED = ("", "/healthz", "/livez")
PAGES = "/live/"
CONNECTIONS = 32  # at a time, each with a thread of its own; one more takes the place of the oldest
CONNECTION_SECONDS = 10.0  # that one may take, whatever it does: a scrape takes a few milliseconds


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # connections that wait to be accepted; with 5 a burst of them would delay a scrape
    tls: ssl.SSLContext | None = None

    def __init__(self, address: tuple[str, int]) -> None:
        self._open: dict[socket.socket, float] = {}  # when each was accepted, the oldest first
        self._opening = threading.Lock()
        super().__init__(address, _SilentHandler)

    def server_bind(self) -> None:
        """Bind without http.server's look-up of the host's full name, which can hang without DNS."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection; its handshake is left to its own thread, which may wait for it."""
        accepted, address = super().get_request()
        accepted.settimeout(CONNECTION_SECONDS)
        if self.tls is not None:
            accepted = self.tls.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        with self._opening:
            self._open[accepted] = time.monotonic()
            if len(self._open) > CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]  # its thread, which finds out, need not have ended before the next one comes
                _cut(oldest)
        return accepted, address

    def service_actions(self) -> None:
        """Between connections: cut those that take too long."""
        latest = time.monotonic() - CONNECTION_SECONDS
        with self._opening:
            for connection in [one for one, since in self._open.items() if since < latest]:
                _cut(connection)

    def close_request(self, request: Any) -> None:
        """A connection is over."""
        with self._opening:
            self._open.pop(request, None)
        super().close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A connection that was cut, or never spoke HTTP; nothing that an operator should see to."""
        logger.debug("a connection to the metrics from %s failed", client_address, exc_info=True)


def _cut(connection: socket.socket) -> None:
    """End a connection; whoever reads from it, or writes to it, finds out."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # not TLS's own, which is the thread's


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, *_arguments: Any) -> None:
        """Say nothing: probes come every few seconds."""


class MetricsServer:
    """Serves /metrics, /healthz and /livez on a daemon thread from construction until `close`.

    /healthz answers 200 while `state()` is "serving", else 503, with the state as its text; so does /, which load
    balancers ask for that are told no path; /livez 200 while `live()`, whatever the state, else 503. All answer anyone,
    by whichever of PROBE_VERBS. Who asks / for HTML, as browsers do, gets the pages.

    Args:
        host, port: where to listen; port 0 takes a free one, `port` then says which.
        registry: the metrics.
        state: what the server is doing, in a word.
        live: False once a new process would do better.
        may_read: whether the value of an `authorization` header, "" where there is none, lets a client read the
            metrics; None lets everyone.
        tls: the server's certificate; None serves in the clear.
        pages: what answers browsers at /, and all below PAGES; None: there are none.

    Raises:
        AskanceError: the port is in use, or the host is not this machine's.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        state: Callable[[], str],
        live: Callable[[], bool],
        may_read: Callable[[str], bool] | None = None,
        tls: ssl.SSLContext | None = None,
        pages: WSGIApplication | None = None,
    ) -> None:
        scraped = make_wsgi_app(registry)

        def metrics(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            if may_read is not None and not may_read(environ.get("HTTP_AUTHORIZATION", "")):
                challenge = ("WWW-Authenticate", "Bearer")
                return _plain(start_response, "401 Unauthorized", "expected the metrics' bearer token", challenge)
            answer: Iterable[bytes] = scraped(environ, start_response)
            return answer

        def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            path, verb = environ.get("PATH_INFO", "").rstrip("/"), environ["REQUEST_METHOD"]
            if pages is not None and (path.startswith(PAGES) or (path == "" and _wants_html(environ))):
                return pages(environ, start_response)
            if verb == "HEAD":  # what GET would say, without its body
                app(environ | {"REQUEST_METHOD": "GET"}, start_response)
                return []
            if path in PROBED and verb in PROBE_VERBS:
                now = state() if path != "/livez" else "live" if live() else "hung"
                well = now in ("serving", "live")
                return _plain(start_response, "200 OK" if well else "503 Service Unavailable", now)
            if verb != "GET":
                return _plain(start_response, "405 Method Not Allowed", "only GET", ("Allow", "GET, HEAD"))
            if path == "/metrics":
                return metrics(environ, start_response)
            return _plain(start_response, "404 Not Found", "see /metrics, /healthz and /livez")

        try:
            self._server = (_ServerV6 if ":" in host else _Server)((host, port))
        except OSError as error:
            raise AskanceError(cannot_listen("metrics_port", host, port, error)) from None
        self._server.tls = tls
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


def bound_socket(
    setting: str, host: str, port: int, backlog: int | None = None, *, shared: bool = False
) -> socket.socket:
    """A socket bound to a port, which the caller closes; with a backlog it listens. A shared port may be bound by other
    processes of this user's, too.

    Raises:
        AskanceError: it is in use, or the host is not this machine's; the message names the setting.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
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


def _wants_html(environ: WSGIEnvironment) -> bool:
    """Whether a browser asks: what probes accept, if they say so, is anything."""
    return environ["REQUEST_METHOD"] in ("GET", "HEAD") and "text/html" in environ.get("HTTP_ACCEPT", "")


def _plain(start_response: StartResponse, status: str, text: str, *headers: tuple[str, str]) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), *headers])
    return [f"{text}\n".encode()]
