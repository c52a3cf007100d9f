"""How messages come in: a few at a time, each in its time, none beyond the memory meant for them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
from service_support import config, noise, running, tiny_served, until
from test_abuse import MEBIBYTE, Victim, victim
from test_worst_messages import bound, quiet

from askance.service.call import Call, current_call
from askance.service.client_messages import request_of
from askance.service.errors import Code, StatusError
from askance.service.guard import reception
from askance.service.guard.limits import Budget
from askance.service.guard.reception import AT_A_TIME, COPIES, Reception

SCREEN, STREAM = "/askance.v1.Screening/Screen", "/askance.v1.Screening/ScreenStream"
MOST = 100  # bytes of a message


class Memory:
    """What the process holds, as the test has it."""

    def __init__(self) -> None:
        self.held = 1000

    def __call__(self) -> int:
        return self.held


def made(most: int = 1000, seconds: float = 60.0) -> tuple[Reception, Memory]:
    memory = Memory()
    return Reception(Budget(most), MOST, seconds, memory), memory


class Arriving:
    """A message that comes when the test says so."""

    def __init__(self) -> None:
        self.awaited = False
        self.there = asyncio.Event()

    async def __call__(self) -> bytes:
        self.awaited = True
        await self.there.wait()
        return b"here"


def taken_in(one: Reception, client: str = "a", **options: Any) -> tuple[Arriving, asyncio.Task[bytes]]:
    arriving = Arriving()
    return arriving, asyncio.ensure_future(one.message(client, arriving, **options))


async def failure(task: asyncio.Task[bytes]) -> StatusError:
    with pytest.raises(StatusError) as caught:
        await task
    return caught.value


def test_what_watches_over_all_calls_holds_none() -> None:
    """Looks at the memory, by the timer of a message that takes its time or while messages crowd in, are nobody's."""
    by_itself: list[Call | None] = []

    def memory() -> int:
        task = asyncio.current_task()
        if task is None or task.get_name() == "askance-reception":
            by_itself.append(current_call.get())
        return 1000

    async def main() -> None:
        one = Reception(Budget(COPIES * MOST), MOST, 60, memory)
        current_call.set(Call("method", "id", "client", None, {}))
        tasks = [taken_in(one)[1] for _ in range(3)]
        await until(lambda: len(by_itself) >= 4)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    assert all(call is None for call in by_itself)


def test_a_few_are_taken_in_at_a_time_and_the_latest_is_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception, "MOMENT_SECONDS", 60.0)

    async def main() -> None:
        one, _ = made()
        first = [taken_in(one) for _ in range(AT_A_TIME)]
        waiting = [taken_in(one) for _ in range(3)]
        await asyncio.sleep(0)
        assert all(arriving.awaited for arriving, _ in first)
        assert not any(arriving.awaited for arriving, _ in waiting)
        for turn in (2, 1, 0):  # whoever has just come has a client that still waits
            first[turn][0].there.set()
            assert await first[turn][1] == b"here"
            await asyncio.sleep(0)
            assert [arriving.awaited for arriving, _ in waiting] == [i >= turn for i in range(3)]
        for arriving, task in first + waiting:
            arriving.there.set()
            await task

    asyncio.run(main())


def test_one_that_gives_up_gives_its_turn_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception, "MOMENT_SECONDS", 60.0)

    async def main() -> None:
        one, _ = made()
        first = [taken_in(one) for _ in range(AT_A_TIME)]
        early, late = taken_in(one), taken_in(one)
        await asyncio.sleep(0)
        late[1].cancel()  # before its turn
        await asyncio.sleep(0)
        first[0][1].cancel()  # in its turn
        await until(lambda: early[0].awaited)
        assert not late[0].awaited
        for _, task in (*first, early, late):
            task.cancel()
        await asyncio.gather(*(task for _, task in (*first, early, late)), return_exceptions=True)
        last = taken_in(one)
        await until(lambda: last[0].awaited)  # nothing is left of them
        last[0].there.set()
        await last[1]

    asyncio.run(main())


def test_one_that_takes_long_makes_way_unless_memory_grows() -> None:
    async def main() -> None:
        one, memory = made(most=10_000_000)
        slow = [taken_in(one) for _ in range(AT_A_TIME)]
        await asyncio.sleep(0)
        memory.held += 6_000_000  # more than half of what it may
        kept = taken_in(one)
        await asyncio.sleep(5 * reception.MOMENT_SECONDS)
        assert not kept[0].awaited
        memory.held -= 6_000_000
        await until(lambda: kept[0].awaited)
        for arriving, task in (*slow, kept):
            arriving.there.set()
            assert await task == b"here"

    asyncio.run(main())


def test_a_request_has_its_time_and_a_stream_all_of_it() -> None:
    async def main() -> None:
        one, _ = made(seconds=0.05)
        _, request = taken_in(one)
        at_rest, stream = taken_in(one, is_request=False)
        error = await failure(request)
        assert (error.code, error.reason) == (Code.CANCELLED, "cancelled")
        assert str(error) == "the request did not arrive within 0.05 s"
        at_rest.there.set()
        assert await stream == b"here"

    asyncio.run(main())


def test_where_memory_grows_the_longest_of_the_busiest_client_are_ended_requests_first() -> None:
    async def main() -> None:
        one, memory = made(most=2 * COPIES * MOST)  # room for two
        tasks = {
            "a stream at rest": taken_in(one, "a", is_request=False)[1],
            "another's": taken_in(one, "b")[1],
            "the first": taken_in(one, "a")[1],
            "the second": taken_in(one, "a")[1],
            "the third": taken_in(one, "a")[1],
        }
        await asyncio.sleep(3 * reception.MOMENT_SECONDS)
        assert not any(task.done() for task in tasks.values())  # crowded, but nothing comes in
        memory.held += 2 * COPIES * MOST
        await until(lambda: sum(task.done() for task in tasks.values()) == 3)
        assert [name for name, task in tasks.items() if task.done()] == ["the first", "the second", "the third"]
        error = await failure(tasks["the first"])
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "in_flight_bytes")
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)

    asyncio.run(main())


def test_what_is_there_is_held_with_its_copies() -> None:
    one, _ = made(most=10 * COPIES)
    with one.hold(6):
        assert one.budget.taken == 6 * COPIES
        with pytest.raises(StatusError, match="the requests in flight hold up to 20 bytes"), one.hold(5):
            pass
    assert one.budget.taken == 0


class HalfSent:
    """A connection with calls whose messages never end.

    Args:
        target: HOST:PORT of the server.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._http2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._http2.initiate_connection()
        self.ended: dict[int, str] = {}
        """The gRPC status, by stream, of calls that the server has ended."""
        self._flush()

    def begin(self, path: str, size: int) -> int:
        """A call whose message has `size` bytes, as it says; returns its stream."""
        stream = self._http2.get_next_available_stream_id()
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "localhost",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        self._http2.send_headers(stream, list(headers.items()))
        self._http2.send_data(stream, b"\0" + size.to_bytes(4, "big"))
        self._flush()
        return stream

    def send(self, stream: int, size: int) -> int:
        """Send what the server lets it send now, `size` bytes at most; returns how many."""
        sent = 0
        while sent < size and stream not in self.ended:
            most = min(size - sent, self._http2.local_flow_control_window(stream), self._http2.max_outbound_frame_size)
            if most <= 0:
                break
            self._http2.send_data(stream, bytes(most))
            self._flush()
            sent += most
        return sent

    def look(self, seconds: float = 0.05) -> None:
        """Take in what the server says within that time."""
        self._socket.settimeout(seconds)
        try:
            content = self._socket.recv(1 << 20)
        except TimeoutError:
            return
        for event in self._http2.receive_data(content):
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                headers: dict[Any, Any] = dict(event.headers or [])
                if "grpc-status" in headers and event.stream_id is not None:
                    self.ended[event.stream_id] = str(headers["grpc-status"])
            elif isinstance(event, h2.events.StreamReset) and event.stream_id is not None:
                self.ended.setdefault(event.stream_id, "reset")
        self._socket.settimeout(60)
        self._flush()

    def _flush(self) -> None:
        self._socket.settimeout(60)
        self._socket.sendall(self._http2.data_to_send())

    def close(self) -> None:
        self._socket.close()


@contextmanager
def half_sent(target: str) -> Iterator[HalfSent]:
    connection = HalfSent(target)
    try:
        yield connection
    finally:
        connection.close()


@pytest.mark.parametrize("path", [SCREEN, STREAM, "/grpc.health.v1.Health/Check"])
def test_a_connection_of_half_sent_messages_is_held_to_the_bound_and_others_are_answered(
    tmp_path: Path, path: str
) -> None:
    size = 16 * MEBIBYTE - 1024

    def attack(server: Victim) -> int:
        sent = 0
        with half_sent(server.serving.target) as connection:
            streams = [connection.begin(path, size) for _ in range(96)]
            left = dict.fromkeys(streams, size - 1)  # the last byte of each never comes
            for _ in range(400):
                for stream in streams:
                    step = connection.send(stream, min(left[stream], MEBIBYTE))
                    left[stream] -= step
                    sent += step
                connection.look(0.01)
                if sent > 700 * MEBIBYTE or len(connection.ended) > 60:
                    break
            assert server.serves()
        return sent

    with victim(tmp_path) as server:
        before = quiet(server)
        sent = attack(server)
        assert sent > 64 * MEBIBYTE
        assert server.memory("VmHWM") < bound(before)
        assert server.serves()


def test_a_message_that_stalls_is_ended_in_its_time() -> None:
    async def main() -> None:
        async with running(tiny_served(), config(receive_seconds=0.2)) as service:

            def stall() -> dict[int, str]:
                with half_sent(service.target) as connection:
                    request, stream = connection.begin(SCREEN, 1000), connection.begin(STREAM, 1000)
                    connection.send(request, 10)
                    while request not in connection.ended:
                        connection.look()
                    assert stream not in connection.ended  # a stream may rest
                    return connection.ended

            assert list((await asyncio.to_thread(stall)).values()) == [str(grpc.StatusCode.CANCELLED.value[0])]
            await service.stub.Screen(request_of(noise(1)))
            assert service.value("askance_rejected_total", reason="cancelled") in (1, 2)

    asyncio.run(main())


Refused = Callable[[Any], Awaitable[Any]]


def test_what_the_headers_settle_is_settled_before_the_message_comes() -> None:
    """Identity, role and rate: the server answers while nothing of the message is there."""

    async def main() -> None:
        settings = config(anonymous=frozenset(), client_rate=0.001, client_burst=1)
        async with running(tiny_served(), settings) as service:

            def ask() -> str:
                with half_sent(service.target) as connection:
                    stream = connection.begin(SCREEN, 1000)
                    while stream not in connection.ended:
                        connection.look()
                    return connection.ended[stream]

            assert await asyncio.to_thread(ask) == str(grpc.StatusCode.UNAUTHENTICATED.value[0])
        async with running(tiny_served(), config(client_rate=0.001, client_burst=1)) as service:
            await service.stub.Screen(request_of(noise(1)))
            assert await asyncio.to_thread(ask) == str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])

    asyncio.run(main())
