"""What costs a server most for its bytes, to every method of every protocol: memory stays, and others are answered."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from rest_support import INFER
from service_support import noise
from test_abuse import MEBIBYTE, Victim, victim

from askance.service.call import Role
from askance.service.client_messages import request_of
from askance.service.guard.access import new_token
from askance.service.pb.inference import inference_pb2 as oip
from benchmarks.worst_messages import worst_messages

pytestmark = [pytest.mark.acceptance, pytest.mark.lasting]
SIZE = 16 * MEBIBYTE - 1024  # what a message may be, nearly
AT_A_TIME = 4
TOKEN, DIGEST = new_token()
SETTINGS = f"""rest_port = 0
[[access.clients]]
name = "known"
token_sha256 = "{DIGEST}"
roles = {[role.value for role in Role]}
"""
HONEST = {
    "/inference.GRPCInferenceService/ModelInfer": oip.ModelInferRequest(
        model_name="tiny", id="one", inputs=[{"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8]}]
    ).SerializeToString(),
    "/askance.v1.Screening/Screen": request_of(noise(1)).SerializeToString(),
}
OWN = "Internal error from Core"  # the client library's, where a call is refused while it is sent
REFUSALS = {"INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "FAILED_PRECONDITION"}


def bound(quiet: int) -> float:
    """What the server may hold at most, given what it holds when it is quiet."""
    return 1.25 * quiet + 256 * MEBIBYTE


def quiet(server: Victim) -> int:
    """What the server holds after some requests."""
    for _ in range(50):
        assert server.serves()
    return server.memory()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_known", [True, False], ids=["with a token", "without"])
def test_no_grpc_message_costs_more_than_it_is_worth(tmp_path: Path, is_known: bool) -> None:
    metadata = (("authorization", f"Bearer {TOKEN}"),) if is_known else ()
    codes: Counter[str] = Counter()

    async def send(channel: Any, path: str, content: bytes) -> None:
        def same(message: bytes) -> bytes:
            return message

        call = channel.stream_stream(path, request_serializer=same, response_deserializer=same)(
            iter([content]), metadata=metadata, timeout=60
        )
        try:
            async for answer in call:
                assert len(answer) < MEBIBYTE, path
                call.cancel()
                break  # a watch of health has no end
            codes["OK"] += 1
        except grpc.aio.AioRpcError as error:
            if error.details() == OWN:
                return
            codes[error.code().name] += 1
            assert error.code().name in REFUSALS, (path, error.code(), error.details())
            assert "\n" not in (error.details() or "")

    async def main(server: Victim) -> None:
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(server.serving.target, options=options) as channel:
            messages: list[Any] = []
            for worst in worst_messages(SIZE, HONEST):
                messages.append(send(channel, worst.path, worst.content))
                if len(messages) == AT_A_TIME:
                    await asyncio.gather(*messages)
                    messages.clear()
            await asyncio.gather(*messages)

    with victim(tmp_path, SETTINGS) as server:
        before = quiet(server)
        asyncio.run(main(server))
        assert server.memory("VmHWM") < bound(before), codes
        assert server.serves()
        assert codes.total() > 200
        assert codes["INVALID_ARGUMENT"] > 150 * is_known


def worst_bodies() -> Iterator[tuple[str, bytes]]:
    """Bodies of JSON that unfold, at any depth of a request."""
    inputs = '{"inputs":[{"name":"image","datatype":"FP32","shape":[1,1,8,8],"data":[%s]}]}'
    units = ("0,", "0.5,", '"",', "[],", "{},", "null,", '{"a":0},', "[[],[]],")
    for unit in units:
        filling = unit * (SIZE // len(unit) - 100)
        yield f"{unit} alone", f"[{filling[:-1]}]".encode()
        yield f"{unit} as data", (inputs % filling[:-1]).encode()
        yield f"{unit} as inputs", f'{{"inputs":[{filling[:-1]}]}}'.encode()
        yield f"{unit} as parameters", f'{{"inputs":[],"parameters":{{"x":[{filling[:-1]}]}}}}'.encode()
    yield "keys", ("{" + ",".join(f'"{i}":0' for i in range(SIZE // 11)) + "}").encode()
    yield "depth", b"[" * SIZE
    yield "text", json.dumps({"id": "x" * (SIZE - 100), "inputs": []}).encode()


@pytest.mark.timeout(600)
def test_no_body_of_json_costs_more_than_it_is_worth(tmp_path: Path) -> None:
    statuses: Counter[int] = Counter()

    async def main(server: Victim) -> None:
        async with aiohttp.ClientSession() as http:

            async def send(body: bytes) -> None:
                async with http.post(f"http://127.0.0.1:{server.serving.rest_port}{INFER}", data=body) as answer:
                    statuses[answer.status] += 1
                    assert answer.status in (400, 413, 429), await answer.text()
                    assert len(await answer.read()) < MEBIBYTE

            for _name, body in worst_bodies():
                await asyncio.gather(*(send(body) for _ in range(AT_A_TIME)))

    with victim(tmp_path, SETTINGS) as server:
        before = quiet(server)
        asyncio.run(main(server))
        assert server.memory("VmHWM") < bound(before), statuses
        assert server.serves()
