"""Pages: the live page over HTTP, its stream of figures, and what is kept for review, for whoever may look."""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import orjson

from askance.colours import stylesheet
from askance.service.guard.looking import Looker, RefusedError
from askance.service.live.figures import Figures
from askance.service.live.noted import Noted
from askance.service.probing.named import Named
from askance.service.review.store import Mark, ReviewStore

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

logger = logging.getLogger(__name__)

STATIC = Path(__file__).resolve().parent / "static"
TEXT, CSS = "text/plain; charset=utf-8", "text/css; charset=utf-8"
FILES = {
    "/": ("live.html", "text/html; charset=utf-8"),
    "/live/live.css": ("live.css", CSS),
    "/live/live.js": ("live.js", "text/javascript; charset=utf-8"),
    "/live/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
}
EVENT_SECONDS = 1.0
STREAM_SECONDS = 8.0
"""How long a stream of figures lasts, less than the port lets a connection live; browsers then ask for the next."""
REVIEWED = 48
"""How many requests for review the page lists."""
NAMED = 48
"""How many clients that probe it lists."""
MOST_BYTES = 1024  # of what a page sends: a mark is a word
HEADERS = [
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
]
_KEPT = re.compile(r"/live/review/([0-9a-f-]{1,64})/(image|mark)")

Answer = tuple[str, str, bytes]
"""Status, media type and body."""


@dataclass(frozen=True)
class Probing:
    """Clients that probe.

    Attributes:
        listed: those who are named, the latest first.
        lift: lets one off, and says whether it was named.
    """

    listed: Callable[[], list[Named]]
    lift: Callable[[str], bool]


@dataclass(frozen=True)
class Sources:
    """Where the page has what it shows from.

    Attributes:
        figures: in numbers.
        notes: the images answered last.
        activation_map: of the bundle that answers, as JSON; None where it has none.
        review: what is kept for people; None where nothing is.
        probing: clients that probe; None where nobody looks for them.
    """

    figures: Figures
    notes: Callable[[], tuple[list[Noted], list[Noted]]]
    activation_map: Callable[[], bytes | None]
    review: ReviewStore | None
    probing: Probing | None


class Pages:
    """A WSGI application: the page at /, and what it is made of below /live.

    Args:
        sources: of what is shown.
        looker: who may look.
    """

    def __init__(self, sources: Sources, looker: Looker) -> None:
        self._sources = sources
        self._looker = looker
        self._lock = threading.Lock()
        self._event, self._made = b"", 0.0
        self._files = {path: (kind, (STATIC / name).read_bytes()) for path, (name, kind) in FILES.items()}
        self._files["/live/colours.css"] = CSS, stylesheet().encode()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request for one of `serves`."""
        path, verb = environ.get("PATH_INFO") or "/", environ["REQUEST_METHOD"]
        try:
            name = self._looker.admit(environ)
        except RefusedError as refused:
            return _answered(start_response, (refused.status, TEXT, f"{refused}\n".encode()), refused.headers)
        if verb == "GET" and path == "/live/events":
            start_response("200 OK", [("Content-Type", "text/event-stream"), ("X-Accel-Buffering", "no"), *HEADERS])
            return self._events()
        try:
            answer = self._answer(environ, verb, path, name)
        except sqlite3.Error as error:
            logger.error("what is kept for review cannot be read: %s", error)
            answer = "503 Service Unavailable", TEXT, b"what is kept for review cannot be read now\n"
        return _answered(start_response, answer)

    def _answer(self, environ: WSGIEnvironment, verb: str, path: str, name: str) -> Answer:
        review = self._sources.review
        if verb == "GET" and path in self._files:
            kind, content = self._files[path]
            return "200 OK", kind, content
        if verb == "GET" and path == "/live/map":
            return _json(self._sources.activation_map() or b"null")
        if verb == "GET" and path == "/live/review":
            (client,) = parse_qs(environ.get("QUERY_STRING", "")).get("client", [None])[:1]
            kept = None if review is None else review.listed(name, client=client, limit=REVIEWED)
            return _json(orjson.dumps(kept and [one.as_dict() for one in kept]))
        if verb == "POST" and path == "/live/probing/lift" and self._sources.probing is not None:
            return self._lifted(self._sources.probing, environ, name)
        if review is not None and (found := _KEPT.fullmatch(path)):
            return self._reviewed(review, environ, verb, name, *found.groups())
        return "404 Not Found", TEXT, b"there is no such page\n"

    def _reviewed(
        self, review: ReviewStore, environ: WSGIEnvironment, verb: str, name: str, which: str, what: str
    ) -> Answer:
        """The image of a request, or, told so, a mark on it."""
        try:
            if verb == "GET" and what == "image":
                return "200 OK", *review.shown(which, name)
            if verb == "POST" and what == "mark" and self._looker.is_own(environ):
                review.mark(which, _mark_in(environ), name)
                return _json(b"true")
        except KeyError:
            return "404 Not Found", TEXT, b"it is no longer kept\n"
        except ValueError as error:
            return "400 Bad Request", TEXT, f"{error}\n".encode()
        return "403 Forbidden", TEXT, b"only this page's own scripts mark requests\n"

    def _lifted(self, probing: Probing, environ: WSGIEnvironment, name: str) -> Answer:
        """A client that probes let off."""
        if not self._looker.is_own(environ):
            return "403 Forbidden", TEXT, b"only this page's own scripts, and no other site's, let clients off\n"
        try:
            client = _text_in(environ, "a client's name")
        except ValueError as error:
            return "400 Bad Request", TEXT, f"{error}\n".encode()
        if not probing.lift(client):
            return "404 Not Found", TEXT, b"no such client is named\n"
        logger.warning("%s lets %s off, which was found to probe", name, client)
        return _json(b"true")

    def _events(self) -> Iterator[bytes]:
        """Figures, one second after the other; all who look share them."""
        yield b"retry: 500\n\n"
        end = time.monotonic() + STREAM_SECONDS
        while time.monotonic() < end:
            yield self._latest()
            time.sleep(EVENT_SECONDS)

    def _named(self) -> list[dict[str, Any]] | None:
        if (probing := self._sources.probing) is None:
            return None
        return [one.as_dict() for one in probing.listed()[:NAMED]]

    def _latest(self) -> bytes:
        with self._lock:
            if time.monotonic() - self._made >= EVENT_SECONDS / 2:
                shown = self._sources.figures.now(*self._sources.notes())
                shown |= {"reviewing": self._sources.review is not None, "probing": self._named()}
                self._event = b"data: " + orjson.dumps(shown) + b"\n\n"
                self._made = time.monotonic()
            return self._event


def _text_in(environ: WSGIEnvironment, what: str) -> str:
    """The text that a page sends, as JSON.

    Raises:
        ValueError: it is none.
    """
    length = environ.get("CONTENT_LENGTH") or "0"
    if not length.isdecimal() or int(length) > MOST_BYTES:
        raise ValueError(f"expected {what}, of at most {MOST_BYTES} bytes")
    try:
        said: Any = orjson.loads(environ["wsgi.input"].read(int(length)))
    except orjson.JSONDecodeError:
        said = None
    if not isinstance(said, str):
        raise ValueError(f"expected {what} as JSON, a text")
    return said


def _mark_in(environ: WSGIEnvironment) -> Mark:
    """The mark that a page sends.

    Raises:
        ValueError: it is none.
    """
    said = _text_in(environ, "a mark")
    if said not in list(Mark):
        raise ValueError(f"expected one of {', '.join(Mark)}")
    return Mark(said)


def _json(content: bytes) -> Answer:
    return "200 OK", "application/json", content


def _answered(start_response: StartResponse, answer: Answer, more: Sequence[tuple[str, str]] = ()) -> Iterable[bytes]:
    status, kind, content = answer
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(content))), *HEADERS, *more])
    return [content]
