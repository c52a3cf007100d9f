"""What one client, and all together, may ask for; readiness while the inference thread is stuck; old connections."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st
from service_support import Valve, config, marked, noise, running, status_of, tiny_served, until

from askance.service.client_messages import request_of
from askance.service.errors import Code, StatusError
from askance.service.guard.limits import REMEMBERED_CLIENTS, Budget, RateLimit, network_of
from askance.service.guard.reception import COPIES
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.inference import inference_pb2, inference_pb2_grpc


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_token_bucket_by_hand() -> None:
    clock = Clock()
    limit = RateLimit(2.0, 5, clock)
    limit.take("a", 3)
    limit.take("a", 2)
    with pytest.raises(StatusError, match="a client may send 2 images a second, 5 at once: slow down") as caught:
        limit.take("a", 1)
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "client_rate")
    limit.take("b", 5)  # another's allowance is its own
    clock.now += 1.0
    with pytest.raises(StatusError):
        limit.take("a", 3)  # what is refused costs nothing
    limit.take("a", 2)
    clock.now += 100.0
    limit.take("a", 5)
    with pytest.raises(StatusError):
        limit.take("a", 6)  # never more than the burst


def test_whoever_has_an_ipv6_network_is_one_client() -> None:
    limit = RateLimit(1.0, 2, Clock())
    limit.take("ipv6:%5B2001:db8:1:2::1%5D", 1)
    limit.take("ipv6:%5B2001:db8:1:2:ffff::9%5D", 1)
    with pytest.raises(StatusError, match="slow down"):
        limit.take("ipv6:%5B2001:db8:1:2:3:4:5:6%5D", 1)
    limit.take("ipv6:%5B2001:db8:1:3::1%5D", 2)  # the next network
    limit.take("ipv4:10.0.0.1", 2)
    with pytest.raises(StatusError, match="slow down"):
        limit.take("ipv6:%5B::ffff:10.0.0.1%5D", 1)  # the same, as a socket for both writes it
    for name in ("ipv6:", "ipv6:nonsense", "ipv6:%5Bfe80::1%25eth0%5D", "gateway", ""):
        assert isinstance(network_of(name, 64), str)


@given(st.integers(0, 2**128 - 1), st.integers(0, 2**128 - 1), st.integers(1, 128))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_addresses_are_one_client_by_their_first_bits(one: int, other: int, prefix: int) -> None:
    if (one >> 32) == 0xFFFF or (other >> 32) == 0xFFFF:  # IPv4 in disguise
        return
    keys = {network_of(f"ipv6:%5B{ipaddress.IPv6Address(address)}%5D", prefix) for address in (one, other)}
    assert (len(keys) == 1) is (one >> (128 - prefix) == other >> (128 - prefix))


def test_no_rate_is_no_limit() -> None:
    limit = RateLimit(0.0, 1, Clock())
    for _ in range(100):
        limit.take("a", 1000)


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 4)), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_no_window_sees_more_than_rate_and_burst(steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    limit, taken = RateLimit(1.5, 4, clock), []
    for wait, images in steps:
        clock.now += wait
        try:
            limit.take("a", images)
        except StatusError:
            continue
        taken.append((clock.now, images))
    for i, (start, _) in enumerate(taken):
        for j in range(i, len(taken)):
            assert sum(n for _, n in taken[i : j + 1]) <= 4 + 1.5 * (taken[j][0] - start) + 1e-6


def test_clients_are_forgotten_beyond_a_number() -> None:
    limit = RateLimit(1.0, 1, Clock())
    for i in range(REMEMBERED_CLIENTS + 50):
        limit.take(str(i), 1)
    assert len(limit._buckets) == REMEMBERED_CLIENTS


def test_bytes_in_flight_by_hand() -> None:
    budget = Budget(100)
    with budget.hold(60):
        with pytest.raises(StatusError, match="the requests in flight hold up to 100 bytes"), budget.hold(41):
            raise AssertionError("it fits")
        assert budget.taken == 60
        with budget.hold(40):
            assert budget.taken == 100
    assert budget.taken == 0


def test_a_client_that_is_too_fast_is_told_so_image_by_image() -> None:
    async def main() -> None:
        async with running(settings=config(client_rate=0.001, client_burst=6)) as service:
            for _ in range(2):
                await service.stub.Screen(request_of(noise(1)))
            batch = np.stack([noise(i) for i in range(5)])
            tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=batch.shape)
            request = inference_pb2.ModelInferRequest(
                model_name="tiny", inputs=[tensor], raw_input_contents=[batch.tobytes()]
            )
            stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(service.channel)  # type: ignore[no-untyped-call]
            code, line = await status_of(stub.ModelInfer(request))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert line == "a client may send 0.001 images a second, 6 at once: slow down"
            stream = service.stub.ScreenStream(iter([request_of(noise(i), request_id=str(i)) for i in range(6)]))
            outcomes = [answer.WhichOneof("outcome") async for answer in stream]
            # the batch took one before it was known to have five
            assert outcomes == ["response"] * 3 + ["error"] * 3
            assert service.value("askance_rejected_total", reason="client_rate") == 4
            assert (await service.stub.Describe(pb.DescribeRequest())).classifier == "tiny"  # questions are free

    asyncio.run(main())


def test_bytes_in_flight_are_bounded_and_given_back() -> None:
    async def main() -> None:
        valve = Valve()
        size, most = request_of(marked(0.1)).ByteSize(), 12
        limits = {"max_in_flight_bytes": most * COPIES * size + 10, "max_message_bytes": 2048}
        async with running(tiny_served(valve), config(**limits)) as service:
            valve.shut()
            calls = [asyncio.ensure_future(service.stub.Screen(request_of(marked(0.1)))) for _ in range(most)]
            budget = service.server.reception.budget
            await until(lambda: budget.taken == most * COPIES * size)
            code, line = await status_of(service.stub.Screen(request_of(marked(0.2))))
            assert (code, "bytes: try again" in line) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
            valve.opened.set()
            await asyncio.gather(*calls)
            await until(lambda: budget.taken == 0)
            await service.stub.Screen(request_of(marked(0.2)))
            assert service.value("askance_rejected_total", reason="in_flight_bytes") == 1

    asyncio.run(main())


def test_a_server_that_is_full_refuses_without_reading() -> None:
    async def main() -> None:
        valve = Valve()
        async with running(tiny_served(valve), config(queue_size=1, max_batch=1)) as service:
            await service.stub.Screen(request_of(marked(0.1)))  # the method is known from its first call on
            channel: Any = service.channel  # without a serializer, which grpc-stubs want
            garbage = channel.unary_unary("/askance.v1.Screening/Screen")
            assert (await status_of(garbage(b"\xff")))[0] is grpc.StatusCode.INVALID_ARGUMENT
            valve.shut()
            held = [asyncio.ensure_future(service.stub.Screen(request_of(marked(0.1))))]
            await until(valve.entered.is_set)
            held.append(asyncio.ensure_future(service.stub.Screen(request_of(marked(0.2)))))
            await until(lambda: service.value("askance_queue_depth") == 1)
            code, line = await status_of(garbage(b"\xff"))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert line == "the queue is full (1 requests are waiting): try again later or elsewhere"
            assert service.value("askance_rejected_total", reason="queue_full") == 1
            counted = {"method": "Screen", "code": "RESOURCE_EXHAUSTED"}
            assert service.value("askance_requests_total", **counted) == 1
            assert (await service.stub.Describe(pb.DescribeRequest())).classifier == "tiny"  # questions are answered
            valve.opened.set()
            await asyncio.gather(*held)

    asyncio.run(main())


def test_readiness_goes_while_the_inference_thread_is_stuck_and_comes_back() -> None:
    async def main() -> None:
        valve = Valve()
        async with running(tiny_served(valve), config(stall_seconds=0.2)) as service:
            health: Any = health_pb2_grpc.HealthStub(service.channel)  # type: ignore[no-untyped-call]

            async def healthy() -> bool:
                answer = await health.Check(health_pb2.HealthCheckRequest(service="askance.v1.Screening"))
                return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

            assert await healthy()
            valve.shut()
            stuck = asyncio.ensure_future(service.stub.Screen(request_of(marked(0.1))))
            await until(lambda: service.server.admission.state == "stalled")
            while await healthy():
                await asyncio.sleep(0.01)
            assert (await service.get("/healthz"))[0] == 503
            code, line = await status_of(service.stub.Screen(request_of(marked(0.2))))
            assert (code, line) == (
                grpc.StatusCode.UNAVAILABLE,
                "the server is stalled: try again or another server",
            )
            assert service.value("askance_rejected_total", reason="stalled") == 1
            valve.opened.set()
            assert (await stuck).prediction.name
            await until(lambda: service.server.admission.state == "serving")
            while not await healthy():
                await asyncio.sleep(0.01)
            await service.stub.Screen(request_of(marked(0.2)))

    asyncio.run(main())


def test_an_old_connection_is_closed_between_calls_and_none_fails() -> None:
    async def main() -> None:
        async with running(settings=config(max_age_seconds=0.3)) as service:
            states: list[grpc.ChannelConnectivity] = []

            async def watch() -> None:
                while True:
                    states.append(service.channel.get_state())
                    await service.channel.wait_for_state_change(states[-1])

            watcher = asyncio.create_task(watch())
            while states.count(grpc.ChannelConnectivity.READY) < 3:  # connected anew, twice
                await service.stub.Screen(request_of(noise(1)))
            watcher.cancel()

    asyncio.run(main())
