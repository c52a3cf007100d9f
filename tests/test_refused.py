"""What is refused, or given up, is gone at once: no cycle keeps a request until a garbage collection."""

from __future__ import annotations

import asyncio
import gc
import logging
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest
import uvloop
from rest_support import INFER
from service_support import Running, Valve, config, marked, noise, running, tiny_served, until

from askance.service.call import Call
from askance.service.client_messages import request_of
from askance.service.errors import StatusError
from askance.service.guard.interceptor import Sent
from askance.service.pb.inference import inference_pb2 as oip
from askance.service.runtime.screener import InputImage

TIMES = 20
GRPC = ("_ServicerContext", "RPCState")
KEPT = (Call, Sent, StatusError, InputImage)
SCREEN, STREAM = "/askance.v1.Screening/Screen", "/askance.v1.Screening/ScreenStream"
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
MODEL_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
Attempt = Callable[[Running], Awaitable[None]]


@pytest.fixture(scope="module", autouse=True)
def only_what_is_new() -> Iterator[None]:
    """What was there before is neither collected nor counted: it is most of what there is, and takes seconds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def alive() -> Counter[str]:
    """How many there are of what a call is made of, gRPC's own part of it too, and of what was raised on its way."""
    names = Counter(type(one).__name__ for one in gc.get_objects())
    return Counter({name: names[name] for name in (*(kind.__name__ for kind in KEPT), *GRPC, "traceback")})


def as_served(main: Coroutine[Any, Any, None]) -> None:
    """Run it on the event loop that a server has; asyncio's own keeps timers that were cancelled for a while."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


@contextmanager
def no_collection() -> Iterator[None]:
    """Whatever only a collection would end stays."""
    gc.collect()
    gc.disable()
    logging.disable()  # pytest keeps what is logged, and with an exception all that led to it
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        gc.enable()


def infer(images: np.ndarray[Any, Any], **fields: Any) -> bytes:
    tensor = {"name": "image", "datatype": "UINT8", "shape": images.shape}
    request = oip.ModelInferRequest(model_name="tiny", inputs=[tensor], raw_input_contents=[images.tobytes()])
    request.MergeFrom(oip.ModelInferRequest(**fields))
    return request.SerializeToString()


GOOD = request_of(noise(1)).SerializeToString()
WRONG = {
    "no message": b"\xff\xff\xff",
    "no image": b"",
    "a wrong file": request_of(b"no file").SerializeToString(),
    "too many fields": b"\x1a\x00" * 9000,
    "a long text": b"\x0a\x80\x80\x08" + b"x" * (1 << 17),
}
WRONG_INFERENCES = {
    "no message": b"\xff\xff\xff",
    "no model": b"",
    "a wrong shape": infer(noise(1)),
    "an output that is none": infer(noise(1)[None], outputs=[{"name": "nothing"}]),
    "too many fields": b"\x2a\x00" * 9000,
    "one of two images is wrong": oip.ModelInferRequest(
        model_name="tiny",
        inputs=[{"name": "encoded", "datatype": "BYTES", "shape": [2], "contents": {"bytes_contents": [b"a", b"b"]}}],
    ).SerializeToString(),
}


def unary(path: str, content: bytes) -> Attempt:
    async def attempt(service: Running) -> None:
        channel: Any = service.channel
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary(path)(content)

    return attempt


def stream(path: str, content: bytes, *, gives_up: bool = False) -> Attempt:
    async def attempt(service: Running) -> None:
        channel: Any = service.channel
        call = channel.stream_stream(path)()
        await call.write(content)
        await call.read()  # the only one
        if gives_up:
            call.cancel()
            return
        await call.done_writing()
        while isinstance(await call.read(), bytes):
            pass

    return attempt


def over_http(body: bytes, path: str = INFER) -> Attempt:
    async def attempt(service: Running) -> None:
        url = f"http://127.0.0.1:{service.server.ports.others['rest']}{path}"
        async with aiohttp.ClientSession() as http, http.post(url, data=body) as answer:
            assert answer.status >= 400

    return attempt


ATTEMPTS: dict[str, Attempt] = {
    **{f"Screen, {name}": unary(SCREEN, content) for name, content in WRONG.items()},
    **{f"ScreenStream, {name}": stream(STREAM, content) for name, content in WRONG.items()},
    **{f"ModelInfer, {name}": unary(MODEL_INFER, content) for name, content in WRONG_INFERENCES.items()},
    **{f"ModelStreamInfer, {name}": stream(MODEL_STREAM, content) for name, content in WRONG_INFERENCES.items()},
    "ScreenStream given up": stream(STREAM, GOOD, gives_up=True),
    "ModelStreamInfer given up": stream(MODEL_STREAM, infer(noise(1)[None]), gives_up=True),
    "health of nothing": unary("/grpc.health.v1.Health/Check", b"\x0a\x01x"),
    "a model that is not there": unary("/inference.GRPCInferenceService/ModelConfig", b"\x0a\x01x"),
    "REST, no JSON": over_http(b"{"),
    "REST, no image": over_http(b'{"inputs":[]}'),
    "REST, a load that is not ours": over_http(b"{}", "/v2/repository/models/none/load"),
}


async def told_apart(service: Running, attempt: Attempt) -> tuple[Counter[str], Counter[str]]:
    """What is alive after two attempts, and after many more."""
    with no_collection():
        for _ in range(2):  # the last one's status may still be on its way out
            await attempt(service)
        await asyncio.sleep(0.1)
        before = alive()
        for _ in range(TIMES):
            await attempt(service)
        await until(lambda: service.server.admission.calls == 0)
        await asyncio.sleep(0.1)
        return before, alive()


@pytest.mark.parametrize("name", ATTEMPTS)
def test_what_is_refused_leaves_nothing_behind(name: str) -> None:
    async def main() -> None:
        async with running(settings=config(rest_port=0)) as service:
            before, after = await told_apart(service, ATTEMPTS[name])
            assert after - before == Counter(), blame(after - before)

    as_served(main())


@pytest.mark.parametrize("what", ["cancelled", "expired", "queue full", "bytes in flight", "too fast", "poison"])
def test_what_fails_on_its_way_leaves_nothing_behind(what: str) -> None:
    settings: dict[str, dict[str, Any]] = {
        "queue full": {"queue_size": 1},
        "bytes in flight": {"max_in_flight_bytes": 8192, "max_message_bytes": 4096},
        "too fast": {"client_rate": 0.001, "client_burst": 1},
    }
    large = request_of(noise(1), request_id="x" * 2000)

    async def main() -> None:
        valve = Valve()
        async with running(tiny_served(valve), config(**settings.get(what, {}))) as service:

            async def attempt(service: Running) -> None:
                match what:
                    case "cancelled":
                        valve.shut()
                        calls = [asyncio.ensure_future(service.stub.Screen(request_of(noise(i)))) for i in range(3)]
                        await until(valve.entered.is_set)
                        for call in calls:
                            call.cancel()
                        await asyncio.gather(*calls, return_exceptions=True)
                        valve.opened.set()
                    case "expired":
                        valve.shut()  # another image is with the classifier while this one waits
                        first = asyncio.ensure_future(service.stub.Screen(request_of(noise(1))))
                        await until(valve.entered.is_set)
                        with pytest.raises(grpc.aio.AioRpcError):
                            await service.stub.Screen(request_of(noise(2)), timeout=0.05)
                        valve.opened.set()
                        await first
                    case "queue full":
                        calls = [asyncio.ensure_future(service.stub.Screen(request_of(noise(i)))) for i in range(9)]
                        await asyncio.gather(*calls, return_exceptions=True)
                    case "poison":
                        with pytest.raises(grpc.aio.AioRpcError):
                            await service.stub.Screen(request_of(marked(Valve.POISON)))
                    case "bytes in flight":
                        valve.shut()  # one of them is with the classifier, and leaves no room for the others
                        calls = [asyncio.ensure_future(service.stub.Screen(large)) for _ in range(3)]
                        await until(lambda: sum(call.done() for call in calls) == 2)
                        valve.opened.set()
                        outcomes = await asyncio.gather(*calls, return_exceptions=True)
                        assert sum(isinstance(one, grpc.aio.AioRpcError) for one in outcomes) == 2
                    case "too fast":
                        with suppress(grpc.aio.AioRpcError):
                            await service.stub.Screen(request_of(noise(1)))

            before, after = await told_apart(service, attempt)
            assert after - before == Counter(), blame(after - before)

    as_served(main())


def blame(left: Counter[str]) -> str:
    """What holds one of those that are left: for whoever has to find the cycle."""
    lines = []
    for one in gc.get_objects():
        if type(one).__name__ in left:
            holders = [ref for ref in gc.get_referrers(one) if not isinstance(ref, types.FrameType | list)]
            frames = [ref.f_code.co_qualname for ref in gc.get_referrers(one) if isinstance(ref, types.FrameType)]
            lines.append(f"{type(one).__name__}: {[type(h).__name__ for h in holders]}, frames {frames}")
    return f"{left}: " + "; ".join(sorted(set(lines))[:6])
