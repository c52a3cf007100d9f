"""Malformed messages to every method of every protocol: no crash, hang, INTERNAL or growth; `make fuzz`: 100,000."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import struct
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest
import yarl
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rest_support import INFER, LENGTH, as_json, binary_images
from service_support import encoded, http_get, noise, process_serving, publish_tiny

from askance.service.call import Role
from askance.service.client_messages import request_of
from askance.service.guard.access import new_token
from askance.service.launch import Serving
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.inference import inference_pb2 as oip

EACH = 100  # messages of a batch; hypothesis picks the batches' seeds, as many as its profile says
STREAMED = 10  # messages of a stream; one stream a batch
OVER_HTTP, RAW = 30, 2  # requests of a batch, and connections that do not speak HTTP well
GROWTH = 24 * 1024 * 1024  # bytes: what the server may take more at the end than after a fifth
TOKEN, DIGEST = new_token()
SETTINGS = f"""
port = 0
metrics_port = 0
rest_port = 0
[[access.clients]]
name = "fuzzer"
token_sha256 = "{DIGEST}"
roles = {[role.value for role in Role]}
"""
OWN = "Internal error from Core"  # the client library's, where a stream is ended while it writes
STATUSES = {200, 400, 404, 405, 501}
ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "FAILED_PRECONDITION"}
SERVICES = {
    "askance.v1.Screening": pb.DESCRIPTOR.services_by_name["Screening"],
    "inference.GRPCInferenceService": oip.DESCRIPTOR.services_by_name["GRPCInferenceService"],
}
METHODS = [f"/{name}/{m.name}" for name, service in SERVICES.items() for m in service.methods if "Stream" not in m.name]
STREAMS = ["/askance.v1.Screening/ScreenStream", "/inference.GRPCInferenceService/ModelStreamInfer"]
# those with images, most of the time
WEIGHTS = [20 if path.endswith(("/Screen", "/ModelInfer")) else 1 for path in METHODS]
PNG = encoded(Image.fromarray(noise(0)[0]))
INTEGERS = (0, 1, -1, 2, 3, 8, 64, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63))


def odd_bytes(r: random.Random) -> bytes:
    """Pixels, files, and what is neither."""
    match r.randrange(8):
        case 0:
            return b""
        case 1:
            return PNG[: r.randrange(len(PNG))]
        case 2:
            return flipped(r, PNG)
        case 3:
            return struct.pack("<64f", *(r.choice((0.5, float("nan"), float("inf"), -1.0, 2.0)) for _ in range(64)))
        case 4:
            return noise(1).tobytes() + r.randbytes(r.randrange(3))
        case 5:  # an element of BYTES with a length that lies
            return struct.pack("<I", r.choice((0, 5, len(PNG), 2**32 - 1))) + PNG
        case 6:
            return b"\x89PNG\r\n\x1a\n" + r.randbytes(40)
        case _:
            return r.randbytes(r.randrange(300))


def odd_text(r: random.Random) -> str:
    return r.choice(
        ("", "tiny", "image", "encoded", "FP32", "UINT8", "BYTES", "label", "\0", "é" * 50, "x" * 5000, "%s")
    )


def odd_shape(r: random.Random) -> list[int]:
    if r.random() < 0.4:
        return r.choice(([1, 8, 8], [1, 1, 8, 8], [1], [1, 1], [2, 1, 8, 8]))
    return [r.choice(INTEGERS) for _ in range(r.choice((0, 1, 3, 4, 4, 9, 200)))]


def screen_request(r: random.Random) -> Message:
    request = pb.ScreenRequest(request_id=odd_text(r), explain=r.random() < 0.3)
    if r.random() < 0.5:
        request.encoded = odd_bytes(r)
    elif r.random() < 0.9:
        request.tensor.CopyFrom(pb.Tensor(shape=odd_shape(r), data=odd_bytes(r)))
        request.tensor.dtype = r.choice((pb.Tensor.DATA_TYPE_UNSPECIFIED, pb.Tensor.FP32, pb.Tensor.UINT8))
    return request


def infer_request(r: random.Random) -> Message:
    request = oip.ModelInferRequest(model_name=r.choice(("tiny", "tiny", "tiny", odd_text(r))), id=odd_text(r))
    if r.random() < 0.1:
        request.model_version = odd_text(r)
    for _ in range(r.choice((0, 1, 1, 1, 1, 1, 2))):
        tensor = request.inputs.add(name=r.choice(("image", "image", "encoded", odd_text(r))), shape=odd_shape(r))
        tensor.datatype = r.choice(("FP32", "UINT8", "BYTES", odd_text(r)))
        if r.random() < 0.3:
            contents = tensor.contents
            for _ in range(r.choice((0, 1, 64, 65))):
                contents.fp32_contents.append(r.choice((0.5, float("nan"), 3e38)))
                contents.uint_contents.append(r.choice((0, 255, 256, 2**32 - 1)))
            contents.bytes_contents.append(odd_bytes(r))
        if r.random() < 0.1:
            tensor.parameters["shared_memory_region"].string_param = odd_text(r)
    for _ in range(r.choice((0, 0, 0, 1, 3))):
        request.outputs.add(name=odd_text(r))
    if r.random() < 0.2:
        request.parameters[r.choice(("detail", odd_text(r)))].string_param = odd_text(r)
    for _ in range(r.choice((0, 1, 1, 1, 2))):
        request.raw_input_contents.append(odd_bytes(r))
    return request


def flipped(r: random.Random, content: bytes) -> bytes:
    """With some bits turned, a piece cut out, or a piece doubled."""
    changed = bytearray(content or b"\0")
    for _ in range(r.randrange(1, 6)):
        changed[r.randrange(len(changed))] ^= 1 << r.randrange(8)
    start, end = sorted(r.randrange(len(changed) + 1) for _ in range(2))
    return bytes(r.choice((changed, changed[:start] + changed[end:], changed[:end] + changed[start:])))


VALID = [request_of(noise(2)).SerializeToString(), request_of(PNG, explain=True).SerializeToString()]


def message(r: random.Random) -> bytes:
    """One malformed message: random, a valid one damaged, or one whose fields make no sense."""
    match r.randrange(5):
        case 0:
            return r.randbytes(r.randrange(400))
        case 1:
            return flipped(r, r.choice(VALID))
        case 2:
            return flipped(r, r.choice((screen_request, infer_request))(r).SerializeToString())
        case 3:
            return screen_request(r).SerializeToString()
        case _:
            return infer_request(r).SerializeToString()


PATHS = [
    INFER,
    "/v2/models/tiny/versions/12/infer",
    "/v2",
    "/v2/models/tiny",
    "/v2/models/tiny/ready",
    "/v2/models/tiny/stats",
    "/v2/models/stats",
    "/v2/repository/index",
    "/v2/repository/models/tiny/unload",
    "/v2/repository/models/%00/load",
    "/v2/models/%2e%2e%2f/infer",
    "/v2/models/" + "x" * 5000,
    "//",
]
JSONS = [json.dumps(as_json(noise(2)[None])).encode(), json.dumps(as_json(noise(3)[None] / np.float32(255))).encode()]
HEAD = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(JSONS[0])}\r\n\r\n"


def odd_json(r: random.Random, depth: int = 0) -> Any:
    """JSON whose fields make no sense, mostly."""
    match r.randrange(10 if depth < 3 else 6):
        case 0:
            return r.choice(INTEGERS)
        case 1:
            return r.choice((0.5, -0.0, 1e308, None, True))
        case 2 | 3:
            return odd_text(r)
        case 4:
            return [r.choice((0, 255, 0.5, "", None, [])) for _ in range(r.choice((0, 1, 64, 65)))]
        case 5:
            return odd_shape(r)
        case 6 | 7:
            return [odd_json(r, depth + 1) for _ in range(r.choice((0, 1, 2, 70)))]
        case _:
            keys = ("inputs", "outputs", "name", "datatype", "shape", "data", "parameters", "id", "binary_data_size")
            return {key: odd_json(r, depth + 1) for key in keys if r.random() < 0.5}


def odd_tensors(r: random.Random) -> Any:
    """A request for images with one thing wrong, or nothing."""
    request = json.loads(r.choice(JSONS))
    tensor = request["inputs"][0]
    r.choice((request, tensor))[r.choice(("name", "datatype", "shape", "data", "parameters", "outputs", "id"))] = (
        odd_json(r)
    )
    if r.random() < 0.3:
        tensor["parameters"] = {"content_type": "base64", "binary_data_size": r.choice((*INTEGERS, "1", None))}
    return request


def http_request(r: random.Random) -> tuple[str, bytes, dict[str, str]]:
    """Path, body and headers: random, a valid request damaged, or one whose fields make no sense."""
    path = r.choice((INFER, INFER, INFER, r.choice(PATHS)))
    headers: dict[str, str] = {}
    match r.randrange(6):
        case 0:
            body = r.randbytes(r.randrange(400))
        case 1:
            body = flipped(r, r.choice(JSONS))
        case 2:
            body, headers = binary_images(noise(1)[None])
            body = flipped(r, body)
        case 3:
            body = odd_bytes(r) + r.choice(JSONS)
            headers = {LENGTH: r.choice(("", "0", "-1", "x", str(len(body)), "9" * 40, "10"))}
        case 4:
            body = json.dumps(odd_tensors(r)).encode()
        case _:
            body = json.dumps(odd_json(r)).encode()
    if r.random() < 0.05:
        headers["Content-Encoding"] = r.choice(("gzip", "br", "identity", ""))
    return path, body, headers


@dataclass
class Target:
    """The live server, and what it said."""

    process: subprocess.Popen[str]
    serving: Serving
    channel: grpc.aio.Channel
    http: aiohttp.ClientSession
    runner: asyncio.Runner
    codes: Counter[str] = field(default_factory=Counter)
    sizes: list[int] = field(default_factory=list)

    async def call(self, path: str, content: bytes) -> None:
        try:
            await self._method(self.channel.unary_unary, path)(content, timeout=60, metadata=METADATA)
            self.codes["OK"] += 1
        except grpc.aio.AioRpcError as error:
            self.note(error)

    async def stream(self, path: str, contents: list[bytes]) -> None:
        async def requests() -> AsyncIterator[bytes]:
            for content in contents:
                yield content

        try:
            async for answer in self._method(self.channel.stream_stream, path)(
                requests(), timeout=60, metadata=METADATA
            ):
                assert isinstance(answer, bytes)
        except grpc.aio.AioRpcError as error:
            self.note(error)
        self.codes["streamed"] += len(contents)

    async def ask(self, r: random.Random) -> None:
        path, body, headers = http_request(r)
        verb = r.choices(("POST", "GET", "PUT"), (20, 2, 1))[0]
        url = f"http://127.0.0.1:{self.serving.rest_port}{path}"
        headers |= {"Authorization": f"Bearer {TOKEN}"}
        async with self.http.request(verb, yarl.URL(url, encoded=True), data=body, headers=headers) as answer:
            content = await answer.read()
        self.codes[f"HTTP {answer.status}"] += 1
        assert answer.status in STATUSES, (answer.status, content)
        if answer.status != 200 and not path.endswith("/ready"):
            (line,) = json.loads(content).values()
            assert "\n" not in line
            assert len(line) < 1000

    async def speak_badly(self, r: random.Random) -> None:
        """Something near HTTP; what comes back, if anything, is HTTP."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.serving.rest_port)
        with contextlib.suppress(ConnectionError):
            writer.write(flipped(r, HEAD.encode() + JSONS[0]))
            writer.write_eof()
            said = await asyncio.wait_for(reader.read(), 60)
            assert said == b"" or said.startswith(b"HTTP/1.1 ")
            assert not said.startswith(b"HTTP/1.1 500")
        writer.close()
        self.codes["bad HTTP"] += 1

    def note(self, error: grpc.aio.AioRpcError) -> None:
        if error.details() == OWN:
            return
        self.codes[error.code().name] += 1
        assert error.code().name in ALLOWED, (error.code(), error.details())
        assert "\n" not in (error.details() or "")
        assert len(error.details() or "") < 1000

    @staticmethod
    def _method(make: Callable[..., Any], path: str) -> Any:
        return make(path, request_serializer=lambda content: content, response_deserializer=lambda content: content)

    async def batch(self, r: random.Random) -> None:
        paths = r.choices(METHODS, WEIGHTS, k=EACH - STREAMED - OVER_HTTP - RAW)
        stream = [message(r) for _ in range(STREAMED)]
        await asyncio.gather(
            *(self.call(path, message(r)) for path in paths),
            self.stream(r.choice(STREAMS), stream),
            *(self.ask(r) for _ in range(OVER_HTTP)),
            *(self.speak_badly(r) for _ in range(RAW)),
        )

    def resident(self) -> int:
        """Bytes of memory that the server holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) * 1024


METADATA = (("authorization", f"Bearer {TOKEN}"),)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("fuzz")
    publish_tiny(folder / "bundle", "service_support:TinyClassifier")
    (folder / "server.toml").write_text(SETTINGS)
    with asyncio.Runner() as runner, process_serving(folder / "bundle", "--config", folder / "server.toml") as running:
        process, serving = running

        async def connect() -> tuple[grpc.aio.Channel, aiohttp.ClientSession]:
            channel = grpc.aio.insecure_channel(serving.target, options=[("grpc.enable_http_proxy", 0)])
            return channel, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60))

        channel, http = runner.run(connect())
        yield Target(process, serving, channel, http, runner)
        runner.run(channel.close(None))
        runner.run(http.close())


@pytest.mark.timeout(1200)
def test_malformed_messages_are_refused_in_one_line_and_leave_nothing_behind(target: Target) -> None:
    @given(seed=st.integers(0, 2**64 - 1))
    @settings(deadline=None, derandomize=True)
    def fuzz(seed: int) -> None:
        target.runner.run(target.batch(random.Random(seed)))
        target.sizes.append(target.resident())
        assert target.process.poll() is None

    fuzz()
    batches = settings().max_examples
    assert target.codes["streamed"] >= batches * STREAMED
    assert target.codes.total() >= batches * EACH
    # most are malformed, and those that happen to be right are answered
    assert target.codes["INVALID_ARGUMENT"] > 5 * target.codes["OK"] > 0
    assert target.codes["HTTP 400"] > 5 * target.codes["HTTP 200"] > 0
    assert target.sizes[-1] - target.sizes[len(target.sizes) // 5] < GROWTH
    target.runner.run(target.call("/askance.v1.Screening/Screen", VALID[0]))
    _, metrics = http_get(f"http://127.0.0.1:{target.serving.metrics_port}/metrics")
    failures = [
        line for line in metrics.splitlines() if line.startswith("askance_requests_total") and "INTERNAL" in line
    ]
    assert failures
    assert all(line.endswith(" 0.0") for line in failures)
    print(dict(target.codes), [size >> 20 for size in target.sizes[:: len(target.sizes) // 10]])  # noqa: T201
