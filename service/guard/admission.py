"""Admission: what every call passes, whatever its protocol: refused unless serving, identified, counted in and out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum, StrEnum

from askance.service.call import Call, Role, current_call
from askance.service.errors import StatusError, unavailable
from askance.service.guard.access import Access, Shown
from askance.service.guard.limits import RateLimit
from askance.service.observability.metrics import Metrics
from askance.service.observability.requests import RequestLog

logger = logging.getLogger(__name__)


class State(StrEnum):
    """What the server is doing."""

    LOADING = "loading"
    SERVING = "serving"
    STALLED = "stalled"
    LAME_DUCK = "lame duck"  # still serving, but not ready for more
    DRAINING = "draining"


OPEN = (State.SERVING, State.LAME_DUCK)


class Kind(Enum):
    """What a method does.

    Attributes:
        SCREENS: has images screened, a message each way.
        STREAMS: has images screened, each message of a stream a request of its own.
        ASKS: says what is served.
        PROBES: says whether the server serves: to anyone, in every state.
        ADMINISTERS: changes what is served; takes the role admin.
    """

    SCREENS = "screens"
    STREAMS = "streams"
    ASKS = "asks"
    PROBES = "probes"
    ADMINISTERS = "administers"


class Admission:
    """Guards the methods of all protocols.

    What stands behind it raises StatusError for people's errors and never touches a protocol's codes. Calls are counted
    here but for a stream's messages, which its servicer has counted one by one; a stream that fails as a whole is
    counted here once more.

    Args:
        kinds: of the methods, by name.
        metrics: counts the calls that are refused as a whole.
        request_log: keeps the calls.
        access: knows the clients.
        rate: of each client's images; a request to screen has one, at least.
        full: says that a request to screen would be refused for want of room, whatever it holds.
    """

    def __init__(
        self,
        kinds: Mapping[str, Kind],
        metrics: Metrics,
        request_log: RequestLog,
        access: Access,
        rate: RateLimit,
        full: Callable[[], StatusError | None],
    ) -> None:
        self.state = State.LOADING
        self.drained = asyncio.Event()
        """Set once draining and no call is left."""
        self.closing = asyncio.Event()
        """Set once draining: streams end."""
        self.calls = 0
        """Guarded calls under way."""
        self.arrived = 0
        """Guarded calls so far, refused ones too."""
        self._kinds = dict(kinds)
        self._metrics = metrics
        self._request_log = request_log
        self._access = access
        self._rate = rate
        self._full = full

    def open(self) -> None:
        """Let calls through, unless draining has begun."""
        if self.state is State.LOADING:
            self.state = State.SERVING

    def stall(self, stalled: bool) -> None:
        """Refuse calls while the inference thread does not come back."""
        if self.state in (State.SERVING, State.STALLED):
            self.state = State.STALLED if stalled else State.SERVING

    def leave(self) -> None:
        """Look unready, and let calls through all the same, until `close`; a stalled server would answer none."""
        if self.state is State.SERVING:
            self.state = State.LAME_DUCK

    def close(self) -> None:
        """Refuse calls from now on; `drained` is set once those under way are over."""
        self.state = State.DRAINING
        self.closing.set()
        if self.calls == 0:
            self.drained.set()

    def refusal(self, method: str) -> StatusError | None:
        """Why a request to screen would be refused whatever it holds, so that it need not be read; else None."""
        if self._kinds[method] is not Kind.SCREENS or self.state not in OPEN:
            return None
        return self._full()

    def refused(self, method: str, error: StatusError) -> None:
        """Count a request that is refused unread."""
        self.arrived += 1
        self._metrics.failed(method, error.code, error.reason)

    @contextmanager
    def enter(self, call: Call, shown: Shown) -> Iterator[None]:
        """A call, from its arrival to its end; who makes it is known in the block.

        Raises:
            StatusError: UNAVAILABLE unless serving, UNAUTHENTICATED, PERMISSION_DENIED, RESOURCE_EXHAUSTED; or what the
                block raised.
        """
        kind = self._kinds[call.method]
        self.arrived += 1
        self.calls += 1
        current_call.set(call)  # never reset: a call has a task, and so a context, of its own
        try:
            if kind is Kind.STREAMS:
                with self._stream(call.method):
                    self._check(call, kind, shown)
                    yield
            else:
                with self._request_log.request(call):
                    if kind is not Kind.PROBES:
                        self._check(call, kind, shown)
                    yield
        finally:
            self.calls -= 1
            if self.calls == 0 and self.state is State.DRAINING:
                self.drained.set()

    @contextmanager
    def _stream(self, method: str) -> Iterator[None]:
        try:
            yield
        except StatusError as error:
            self._metrics.failed(method, error.code, error.reason)
            raise
        except Exception:
            self._metrics.broke(method)
            raise

    def _check(self, call: Call, kind: Kind, shown: Shown) -> None:
        call.notes["address"] = call.address
        if self.state not in OPEN:
            raise unavailable(self.state.value)
        call.identity = self._access.identify(shown)
        call.identity.require(Role.ADMIN if kind is Kind.ADMINISTERS else Role.PREDICT)
        if kind is Kind.SCREENS:
            call.received()
            self._rate.take(call.client, 1)
            call.images_taken = 1
        if kind is Kind.ADMINISTERS:
            logger.info("%s by %s", call.method, call.identity.name)
