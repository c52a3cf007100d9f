"""Reception: how messages come in: each in its time, all of them within the memory meant for requests.

gRPC gives a message when all of it is there, and says nothing of its size before: what is not there yet can be as large
as a message may be. So only some are taken in at a time. Most are there within a millisecond, whatever waits; one that
is not makes way for the next after a moment, and goes on beside it. Of those there may be many, streams at rest among
them: where the process has grown because of them, the ones that took longest are ended. Half a message is what a client
that means harm sends, and waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from contextvars import Context
from dataclasses import dataclass
from typing import TypeVar

from askance.service.errors import Code, StatusError, too_much
from askance.service.guard.limits import Budget
from askance.service.observability.memory import give_back, resident_bytes

Message = TypeVar("Message")
COPIES = 2  # of a message in memory, until it is answered: what came, and the image made of it
AT_A_TIME = 8  # messages that are taken in
MOMENT_SECONDS = 0.02  # that one is waited for
LOOK_SECONDS = 0.02  # between two looks at the memory, while more is on its way than there is room for
CALM_SECONDS = 1.0  # between two looks while there is room
GIVE_BACK_BYTES = 64 * 1024 * 1024  # received, after which what is free goes back to the system
GIVE_BACK_SECONDS = 5.0  # later: to do without memory, and ask for it anew, takes time


@dataclass(eq=False)
class _Arrival:
    """A message that is awaited."""

    client: str
    is_request: bool  # a stream may rest between its messages
    timer: asyncio.Timeout
    since: float = 0.0
    is_waited_for: bool = False
    moment: asyncio.TimerHandle | None = None
    is_ended: bool = False


class Reception:
    """Takes in messages, and counts their bytes until they are answered.

    Args:
        budget: of all requests in flight.
        most_message_bytes: the largest message.
        seconds: for a request's message to arrive.
        memory: bytes that the process holds; None where that cannot be told.
    """

    def __init__(
        self,
        budget: Budget,
        most_message_bytes: int,
        seconds: float,
        memory: Callable[[], int | None] = resident_bytes,
    ) -> None:
        self.budget = budget
        self._most_message_bytes = most_message_bytes
        self._seconds = seconds
        self._memory = memory
        self._calm = memory()  # bytes held when nothing was in flight
        self._next_look = 0.0
        self._awaited: dict[_Arrival, None] = {}  # in order of arrival
        self._taken_in = 0  # of the awaited, those that others wait for
        self._waiting: list[asyncio.Future[None]] = []
        self._watch: asyncio.Task[None] | None = None
        self._received = 0.0  # bytes since memory was last given back

    async def message(
        self, client: str, arriving: Callable[[], Awaitable[Message]], *, is_request: bool = True
    ) -> Message:
        """What arrives.

        Args:
            client: who sends it.
            arriving: awaits the message, until all of it is there; nothing of it is taken in before it is called.
            is_request: whether its client has asked for an answer already; a stream may rest before its next message
                for as long as it likes.

        Raises:
            StatusError: CANCELLED, it did not arrive in time; RESOURCE_EXHAUSTED, others needed the room.
        """
        arrival = None
        try:
            async with asyncio.timeout(self._seconds if is_request else None) as timer:
                arrival = _Arrival(client, is_request, timer)
                await self._turn(arrival)
                self._begin(arrival)
                try:
                    message = await arriving()
                finally:
                    self._make_way(arrival)
                    del self._awaited[arrival]
        except TimeoutError:
            if arrival is not None and arrival.is_ended:
                raise too_much(self.budget.most) from None
            raise not_arrived(self._seconds) from None
        self._count(len(message) if isinstance(message, bytes) else 0)
        return message

    def hold(self, size: int) -> AbstractContextManager[None]:
        """Hold the memory of a message that is there, until it is answered.

        Args:
            size: bytes of it.

        Raises:
            StatusError: RESOURCE_EXHAUSTED on entry, they do not fit beside those in flight.
        """
        return self.budget.hold(COPIES * size)

    async def _turn(self, arrival: _Arrival) -> None:
        """Wait until a message may come in."""
        # a stream rests more often than not: it waits for others only where memory is short
        if self._taken_in >= AT_A_TIME and (arrival.is_request or self._has_grown()):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                else:  # it was this one's turn, and is the next one's now
                    self._next()
                raise

    def _begin(self, arrival: _Arrival) -> None:
        """From now on it comes in."""
        arrival.is_waited_for, arrival.since = True, asyncio.get_running_loop().time()
        self._taken_in += 1
        self._awaited[arrival] = None
        self._wait_for(arrival)
        self._look()

    def _wait_for(self, arrival: _Arrival) -> None:
        """For a moment, and then for another if what comes in makes the process grow."""

        def over() -> None:
            if self._has_grown():
                self._wait_for(arrival)
            else:
                self._make_way(arrival)

        arrival.moment = asyncio.get_running_loop().call_later(MOMENT_SECONDS, over, context=Context())

    def _make_way(self, arrival: _Arrival) -> None:
        """It is there, or was waited for long enough."""
        if arrival.is_waited_for:
            arrival.is_waited_for = False
            self._taken_in -= 1
            if arrival.moment is not None:
                arrival.moment.cancel()
            self._next()

    def _next(self) -> None:
        """The next may come in: the one that came last.

        Whoever waits for long has clients that gave up, or means harm; whoever has just come is served in time.
        """
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return

    def _count(self, size: int) -> None:
        """Some time after much was received, what it took is given back."""
        self._received += size
        if self._received > GIVE_BACK_BYTES:
            self._received = -math.inf  # until then
            asyncio.get_running_loop().call_later(GIVE_BACK_SECONDS, self._give_back, context=Context())

    def _give_back(self) -> None:
        self._received = 0.0
        asyncio.get_running_loop().run_in_executor(None, give_back)

    def _room(self) -> int:
        """How many more messages of any size there is room for; one, at least, or nothing would ever arrive."""
        return max(1, (self.budget.most - self.budget.taken) // (COPIES * self._most_message_bytes))

    def _is_crowded(self) -> bool:
        return len(self._awaited) > self._room()

    def _has_grown(self) -> bool:
        """Whether the process holds more than when it was calm, by half of what it may; where that is unknown, yes."""
        now = self._memory()
        return now is None or self._calm is None or now - self._calm > self.budget.most // 2

    def _look(self) -> None:
        """Watch the memory while messages crowd in; now and then, when they do not, note what it is."""
        now = asyncio.get_running_loop().time()
        if self._is_crowded():
            if self._watch is None:
                # for all calls, so that it holds none of them
                self._watch = asyncio.create_task(self._make_room(), name="askance-reception", context=Context())
        elif self.budget.taken == 0 and now >= self._next_look:
            self._calm, self._next_look = self._memory(), now + CALM_SECONDS

    async def _make_room(self) -> None:
        """While more messages are on their way than there is room for: end some whenever the process has grown."""
        try:
            while self._is_crowded():
                await asyncio.sleep(LOOK_SECONDS)  # most are there by then
                if self._is_crowded() and self._has_grown():
                    self._end(len(self._awaited) - self._room())
                    self._count(GIVE_BACK_BYTES)
        finally:
            self._watch = None

    def _end(self, count: int) -> None:
        """End `count` arrivals at most: requests first, of the client that has most of them, the longest under way."""
        now, of_client = asyncio.get_running_loop().time(), Counter(arrival.client for arrival in self._awaited)
        late = [arrival for arrival in self._awaited if now - arrival.since > MOMENT_SECONDS]
        # a stable sort: in order of arrival
        for arrival in sorted(late, key=lambda one: (not one.is_request, -of_client[one.client]))[:count]:
            arrival.is_ended = True
            with contextlib.suppress(RuntimeError):  # it has just arrived
                arrival.timer.reschedule(now)


def not_arrived(seconds: float) -> StatusError:
    """CANCELLED: a message did not arrive in its time."""
    return StatusError(Code.CANCELLED, f"the request did not arrive within {seconds:g} s", "cancelled")
