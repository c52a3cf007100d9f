"""One HTTP connection, with what uvicorn leaves out: the head of a request ends, the client's certificate is known."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from askance.service.guard.endpoint import CERTIFICATES

HEAD_BYTES = 64 * 1024  # of a request's line and headers
HEAD_SECONDS = 20.0  # for them to arrive: a client that dribbles does not keep its connection

_TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class RestConnection(HttpToolsProtocol):
    """Closes a connection whose request's head is too long, or too long in coming: uvicorn would wait for ever."""

    _names: tuple[str, ...] = ()
    _is_in_head = True
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first request is awaited; its client's certificate is known by now."""
        super().connection_made(transport)
        ssl_object = transport.get_extra_info("ssl_object")
        if ssl_object is not None:
            self._names = _names_of(ssl_object)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more is awaited."""
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes until the head is there: of what comes with its end, the body may be a part."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            if not self._is_answering():  # else this would fall into the answer
                self.transport.write(_TOO_LONG)
            self.transport.close()

    def on_message_begin(self) -> None:
        """A request begins; what it is answered by finds the names of the client's certificate in its state."""
        super().on_message_begin()
        self.scope["state"][CERTIFICATES] = self._names
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._head_is_there()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next head may begin; it may take its time to do so, which is uvicorn's to limit."""
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_complete()

    def _await_head(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _give_up(self) -> None:
        if self._is_answering():  # the head of the next request can wait so long
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)
        else:
            self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _head_is_there(self) -> None:
        self._is_in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _names_of(ssl_object: ssl.SSLObject) -> tuple[str, ...]:
    """The common name and the DNS names of the client's certificate, which has been verified; none without one."""
    certificate: dict[str, Any] = ssl_object.getpeercert() or {}
    subject = [pair for group in certificate.get("subject", ()) for pair in group]
    named = [value for key, value in subject if key == "commonName"]
    return (*named, *(value for key, value in certificate.get("subjectAltName", ()) if key == "DNS"))
