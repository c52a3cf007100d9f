"""Clients that mean harm or stand in the way: bombs, slow readers, idle crowds; the server stays as it was."""

from __future__ import annotations

import asyncio
import io
import resource
import socket
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image
from service_support import http_get, noise, process_serving, publish_tiny, until

from askance.service.client import Client
from askance.service.client_messages import ServiceError, request_of
from askance.service.launch import Serving
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.askance.v1 import screening_pb2_grpc
from askance.service.pb.inference import inference_pb2, inference_pb2_grpc

MEBIBYTE = 1 << 20
CROWD = 2000
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)  # and empty SETTINGS

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc"),
]


@dataclass
class Victim:
    """A live server."""

    process: subprocess.Popen[str]
    serving: Serving

    def memory(self, field: str = "VmRSS") -> int:
        """Bytes of memory that it holds; VmHWM is the most it ever held."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith(f"{field}:")]
        return int(line.split()[1]) * 1024

    def serves(self) -> bool:
        """Whether another client gets its answer."""
        with Client(self.serving.target) as client:
            return client.screen(noise(1)).label is not None

    def metrics(self) -> str:
        return http_get(f"http://127.0.0.1:{self.serving.metrics_port}/metrics")[1]


@contextmanager
def victim(folder: Path, settings: str = "") -> Iterator[Victim]:
    publish_tiny(folder / "bundle", "service_support:TinyClassifier")
    (folder / "server.toml").write_text(f"port = 0\nmetrics_port = 0\n{settings}")
    with process_serving(folder / "bundle", "--config", folder / "server.toml") as (process, serving):
        yield Victim(process, serving)


def png_of_zeros(side: int) -> bytes:
    """A PNG of side x side black pixels, a thousandth of their size, made without holding them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer, rows = zlib.compressobj(9), io.BytesIO()
    for _ in range(side):
        rows.write(packer.compress(bytes(side + 1)))
    rows.write(packer.flush())
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows.getvalue()) + chunk(b"IEND", b"")


def webp_of_zeros(side: int) -> bytes:
    """A WebP of side x side black pixels."""
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "WEBP", lossless=True, method=0, quality=0)
    return file.getvalue()


@pytest.mark.parametrize(("make", "side"), [(png_of_zeros, 9_000), (webp_of_zeros, 5_000)])
def test_a_picture_that_unfolds_is_refused_by_its_header(
    tmp_path: Path, make: Callable[[int], bytes], side: int
) -> None:
    bomb = make(side)
    assert len(bomb) < MEBIBYTE
    with Image.open(io.BytesIO(bomb)) as opened:
        assert opened.size == (side, side)  # 81, and 25, million pixels
    with victim(tmp_path) as server, Client(server.serving.target) as client:
        assert server.serves()
        before = server.memory("VmHWM")
        for _ in range(20):
            with pytest.raises(ServiceError, match="expected an image of at most 16000000 pixels, got") as caught:
                client.screen(bomb)
            assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert server.memory("VmHWM") - before < 64 * MEBIBYTE
        assert server.serves()


@pytest.mark.parametrize("method", ["Screen", "ModelInfer"])
def test_a_message_that_unfolds_is_refused(tmp_path: Path, method: str) -> None:
    content = bytes(200 * MEBIBYTE)  # gzip makes 200 KiB of it
    request: Any
    with victim(tmp_path) as server:
        assert server.serves()
        before = server.memory("VmHWM")
        options = [("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(server.serving.target, options=options) as channel:
            if method == "Screen":
                stub: Any = screening_pb2_grpc.ScreeningStub(channel)  # type: ignore[no-untyped-call]
                call, request = stub.Screen, pb.ScreenRequest(encoded=content)
            else:
                stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
                call, request = stub.ModelInfer, inference_pb2.ModelInferRequest(raw_input_contents=[content])
            with pytest.raises(grpc.RpcError) as caught:
                call(request, compression=grpc.Compression.Gzip, timeout=120)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert caught.value.details() == "Compression algorithm 'gzip' is disabled."
        assert server.memory("VmHWM") - before < 100 * MEBIBYTE
        assert server.serves()


def test_messages_too_large_fill_no_log(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "bundle", "service_support:TinyClassifier")
    (tmp_path / "server.toml").write_text("port = 0\nmetrics_port = 0\n")
    large = pb.ScreenRequest(encoded=bytes(17 * MEBIBYTE))
    with (tmp_path / "log").open("w") as log:
        arguments = (tmp_path / "bundle", "--config", tmp_path / "server.toml")
        with process_serving(*arguments, stderr=log) as (_, serving):
            options = [("grpc.max_send_message_length", -1)]
            with grpc.insecure_channel(serving.target, options=options) as channel:
                stub: Any = screening_pb2_grpc.ScreeningStub(channel)  # type: ignore[no-untyped-call]
                for _ in range(5):
                    for ask in (lambda: stub.Screen(large), lambda: list(stub.ScreenStream(iter([large])))):
                        with pytest.raises(grpc.RpcError) as caught:
                            ask()
                        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert [line for line in (tmp_path / "log").read_text().splitlines() if " INFO " not in line] == []


def test_a_reader_that_takes_nothing_holds_up_nobody(tmp_path: Path) -> None:
    async def main(server: Victim) -> None:
        before = server.memory()
        async with grpc.aio.insecure_channel(server.serving.target) as channel:
            stub: Any = screening_pb2_grpc.ScreeningStub(channel)  # type: ignore[no-untyped-call]
            call = stub.ScreenStream()
            written = 0
            with pytest.raises(asyncio.TimeoutError):  # the server reads no further ahead than answers are taken
                while written < 100_000:
                    # the id is echoed, so that answers are large
                    await asyncio.wait_for(call.write(request_of(noise(written), request_id="x" * 10_000)), 3)
                    written += 1
            assert 64 < written < 10_000
            assert await asyncio.to_thread(server.serves)
            assert "askance_queue_depth 0.0" in server.metrics()
            assert server.memory() - before < 64 * MEBIBYTE
            call.cancel()
        await asyncio.to_thread(server.serves)

    with victim(tmp_path) as server:
        assert server.serves()
        asyncio.run(main(server))


def test_two_thousand_idle_connections_are_borne_and_closed_in_time(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = CROWD + 500
    if soft < needed:
        if hard < needed:
            pytest.skip(f"this machine allows {hard} open files, {needed} are needed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    try:
        with victim(tmp_path, "[connections]\nmax_idle_seconds = 5.0\n") as server, ExitStack() as stack:
            assert server.serves()
            before = server.memory()
            host, _, port = server.serving.target.rpartition(":")
            crowd = []
            for i in range(CROWD):
                connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=120))
                if i % 2:  # half of them say as much as HTTP/2 wants to hear, half say nothing at all
                    connection.sendall(PREFACE)
                crowd.append(connection)
                if i % 400 == 0:
                    assert server.serves()
            assert server.serves()
            assert server.memory() - before < 300 * MEBIBYTE
            for connection in crowd:
                while connection.recv(4096):  # SETTINGS, at last GOAWAY, then the end
                    pass
            assert server.serves()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_sigterm_is_heard_among_slow_readers(tmp_path: Path) -> None:
    async def main(server: Victim) -> None:
        async with grpc.aio.insecure_channel(server.serving.target) as channel:
            stub: Any = screening_pb2_grpc.ScreeningStub(channel)  # type: ignore[no-untyped-call]
            call = stub.ScreenStream()
            for i in range(10):
                await call.write(request_of(noise(i)))
            await until(lambda: 'method="ScreenStream"' in server.metrics())
            server.process.terminate()
            assert await asyncio.to_thread(server.process.wait) == 0
            call.cancel()

    with victim(tmp_path, "[shutdown]\ndrain_seconds = 1.0\n") as server:
        asyncio.run(main(server))
