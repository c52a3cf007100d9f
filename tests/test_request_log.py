"""What is kept of a request: a line in the log, ids, spans; and nothing of what was in it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from PIL import Image
from service_support import (
    Valve,
    config,
    encoded,
    marked,
    noise,
    process_serving,
    publish_tiny,
    running,
    status_of,
    tiny_served,
    untypical,
)
from test_policy import batch

from askance.errors import ConfigError
from askance.service.call import Call, request_id_of
from askance.service.client_messages import request_of
from askance.service.observability.log import Ids, LogFormat, handler
from askance.service.observability.metrics import Metrics
from askance.service.observability.requests import RequestLog
from askance.service.observability.tracing import export_traces
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.askance.v1 import screening_pb2_grpc
from askance.service.pb.inference import inference_pb2_grpc
from askance.service.settings import Policy

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACED = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "gateway/42"))


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The request_log's lines as a JSON log has them."""
    form = handler(LogFormat.JSON)
    assert form.formatter is not None
    return [
        json.loads(form.formatter.format(r))
        for r in caplog.records
        if r.name == "askance.service.observability.requests"
    ]


@contextmanager
def logged(caplog: pytest.LogCaptureFixture, level: int) -> Iterator[None]:
    """Whatever is logged, with its ids."""
    ids = Ids()
    caplog.handler.addFilter(ids)
    with caplog.at_level(level, "askance.service"):
        yield
    caplog.handler.removeFilter(ids)


def test_a_line_says_who_what_and_how_long_and_belongs_to_its_trace(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with running() as service:
            call = service.stub.Screen(request_of(noise(1), request_id="mine"), metadata=TRACED)
            answer = await call
            trailing = dict(await call.trailing_metadata())
            assert trailing["x-request-id"] == "gateway/42"
            verdict = pb.Verdict.Name(answer.verdict)
            said = verdict if verdict == "ADVERSARIAL" else "OK"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await service.stub.Screen(pb.ScreenRequest(encoded=b"no image"))
            error = caught.value
            (line, refused) = lines(caplog)
            assert line.pop("seconds") > 0
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
            assert line == {
                "level": "DEBUG",
                "logger": "askance.service.observability.requests",
                "message": f"Screen for anonymous (ipv4:127.0.0.1, request gateway/42): {said}",
                "method": "Screen",
                "code": "OK",
                "client": "anonymous",
                "address": "ipv4:127.0.0.1",
                "message_id": "mine",
                "bundle": tiny_served().version,
                "verdicts": [verdict],
                "request_id": "gateway/42",
                "trace_id": TRACE,
                "span_id": PARENT,
            }
            assert (refused["code"], refused["reason"], refused["verdicts"]) == (
                "INVALID_ARGUMENT",
                "invalid",
                ["ERROR"],
            )
            trailing = dict(cast(Any, error.trailing_metadata()))
            given = trailing["x-request-id"]
            assert refused["request_id"] == given != "gateway/42"
            assert len(given) == 16

    with logged(caplog, logging.DEBUG):
        asyncio.run(main())


def test_at_info_only_what_is_flagged_or_failed_here_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        poison = float(np.float32(Valve.POISON))
        async with running(tiny_served(Valve())) as service:
            await service.stub.Screen(request_of(noise(1)))
            await status_of(service.stub.Screen(pb.ScreenRequest(encoded=b"no image")))
            await service.stub.Screen(request_of(untypical()))
            await status_of(service.stub.Screen(request_of(marked(poison))))
            stream = service.stub.ScreenStream(iter([request_of(noise(1)), request_of(untypical(), request_id="7")]))
            assert len([item async for item in stream]) == 2
            stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(service.channel)  # type: ignore[no-untyped-call]
            await stub.ModelInfer(batch(np.stack([noise(1), untypical()])))
        found = [(line["level"], line["method"], line["code"], line["message_id"]) for line in lines(caplog)]
        assert found == [
            ("INFO", "Screen", "OK", ""),
            ("ERROR", "Screen", "INTERNAL", ""),
            ("INFO", "ScreenStream", "OK", "7"),
            ("INFO", "ModelInfer", "OK", ""),
        ]
        assert lines(caplog)[3]["verdicts"] == ["CLEAN", "ADVERSARIAL"]

    with logged(caplog, logging.INFO):
        asyncio.run(main())


def test_no_answer_waits_for_its_line(caplog: pytest.LogCaptureFixture) -> None:
    """Only what is flagged gets one: whoever measures must not see it by that."""

    async def main() -> None:
        call = Call("Screen", "id")
        call.notes["verdicts"] = ["ADVERSARIAL"]
        with RequestLog(Metrics(1, ["Screen"])).request(call):
            pass
        assert lines(caplog) == []
        await asyncio.sleep(0)
        assert [line["verdicts"] for line in lines(caplog)] == [["ADVERSARIAL"]]

    with logged(caplog, logging.INFO):
        asyncio.run(main())


def test_what_is_blocked_is_logged_and_an_anonymous_client_by_its_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with running(settings=config(policy=Policy.BLOCK)) as service:
            await status_of(service.stub.Screen(request_of(untypical())))
            await status_of(service.stub.Screen(request_of(noise(1)), metadata=(("authorization", "Bearer wrong"),)))
        blocked, anonymous = lines(caplog)
        assert (blocked["level"], blocked["code"], blocked["verdicts"]) == (
            "INFO",
            "PERMISSION_DENIED",
            ["BLOCKED"],
        )
        assert (anonymous["code"], anonymous["address"]) == ("UNAUTHENTICATED", "ipv4:127.0.0.1")

    with logged(caplog, logging.DEBUG):
        asyncio.run(main())


def test_others_lines_say_nothing_of_the_images() -> None:
    exif = Image.Exif()
    exif[0x010E] = "SECRET NAME"
    program = (
        "import sys; from askance.service.observability.log import LogFormat, LogLevel, configure\n"
        "from askance.service.protocols.images import decode\n"
        "import logging; from askance.screening.preprocessing import Preprocessing\n"
        "configure(LogLevel.DEBUG, LogFormat.JSON); logging.getLogger('askance.service.x').debug('ours')\n"
        "shape = dict(channels=1, height=8, width=8, mean=(0.5,), std=(0.25,))\n"
        "decode(bytes.fromhex(sys.argv[1]), Preprocessing.model_validate(shape), 1000)\n"
    )
    content = encoded(Image.fromarray(noise(1)[0]), "JPEG", exif=exif)
    done = subprocess.run([sys.executable, "-c", program, content.hex()], capture_output=True, text=True, check=True)
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == ["ours"]


def test_traces_without_the_extra_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ConfigError, match=r"log\.traces: opentelemetry-sdk is not installed: install askance"):
        export_traces()


def test_nothing_that_a_request_holds_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    secret = "s3cr3t"

    async def main() -> None:
        async with running() as service:
            await status_of(service.stub.Screen(pb.ScreenRequest(encoded=secret.encode())))
            metadata = (("x-request-id", f"{secret}\nforged line"), ("note", secret))
            await service.stub.Screen(request_of(noise(1)), metadata=metadata[1:])
            stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(service.channel)  # type: ignore[no-untyped-call]
            request = batch(noise(1)[None], secret)
            request.parameters[secret].string_param = secret
            await status_of(stub.ModelInfer(request))
            request.model_name = secret
            await status_of(stub.ModelInfer(request))
        assert len(lines(caplog)) == 4
        form = handler(LogFormat.JSON)
        assert form.formatter is not None
        assert all(secret not in form.formatter.format(record) for record in caplog.records)

    with logged(caplog, logging.DEBUG):
        asyncio.run(main())


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_request_id_is_one_plain_word(text: str) -> None:
    found = request_id_of(text)
    assert re.fullmatch(r"[!-~]{1,128}", found)
    if re.fullmatch(r"[A-Za-z0-9_.:/+=@-]{1,128}", text):
        assert found == text
    else:
        assert re.fullmatch(r"[0-9a-f]{16}", found)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it is sent, as an OpenTelemetry collector."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.services: set[str] = set()
        self.lock = threading.Lock()

    def Export(self, request: Any, context: Any) -> Any:
        with self.lock:
            for of_service in MessageToDict(request)["resourceSpans"]:
                names = {a["key"]: a["value"].get("stringValue") for a in of_service["resource"]["attributes"]}
                self.services.add(names["service.name"])
                self.spans += [span for scope in of_service["scopeSpans"] for span in scope["spans"]]
        return trace_service_pb2.ExportTraceServiceResponse()


def test_a_process_logs_json_and_sends_its_spans_to_a_collector(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "bundle", "service_support:TinyClassifier")
    (tmp_path / "server.toml").write_text(
        'port = 0\nmetrics_port = 0\n[log]\nformat = "json"\nlevel = "debug"\ntraces = true\n'
    )
    collector = Collector()
    receiver = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, receiver)  # type: ignore[no-untyped-call]
    port = receiver.add_insecure_port("127.0.0.1:0")
    receiver.start()
    environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
    arguments = tmp_path / "bundle", "--config", tmp_path / "server.toml"
    with process_serving(*arguments, stderr=subprocess.PIPE, env=environment) as (process, serving):
        with grpc.insecure_channel(serving.target) as channel:
            stub: Any = screening_pb2_grpc.ScreeningStub(channel)  # type: ignore[no-untyped-call]
            stub.Screen(request_of(untypical(), request_id="mine"), metadata=TRACED)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    receiver.stop(None)

    log = [json.loads(line) for line in errors.splitlines()]
    (request,) = [line for line in log if line["logger"] == "askance.service.observability.requests"]
    assert (request["trace_id"], request["request_id"]) == (TRACE, "gateway/42")
    assert "draining" in [line["message"] for line in log]

    assert collector.services == {"askance"}
    by_name = {span["name"]: span for span in collector.spans}
    assert set(by_name) == {
        "Screen",
        "decode",
        "queue",
        "classify",
        "library_network",
        "self_organizing_map",
        "fused",
        "respond",
    }
    root = by_name.pop("Screen")

    def hexadecimal(identifier: str) -> str:
        return b64decode(identifier).hex()

    assert (hexadecimal(root["traceId"]), hexadecimal(root["parentSpanId"])) == (TRACE, PARENT)
    assert hexadecimal(root["spanId"]) == request["span_id"]
    attributes = {a["key"]: a["value"] for a in root["attributes"]}
    assert attributes["rpc.grpc.status_code"] == {"intValue": "0"}
    assert attributes["askance.verdicts"] == {"arrayValue": {"values": [{"stringValue": "ADVERSARIAL"}]}}
    start, end = int(root["startTimeUnixNano"]), int(root["endTimeUnixNano"])
    for stage in by_name.values():
        assert (stage["traceId"], stage["parentSpanId"]) == (root["traceId"], root["spanId"])
        # stages lie within the request, up to the clocks' steps
        assert start - 1e6 <= int(stage["startTimeUnixNano"]) <= int(stage["endTimeUnixNano"]) <= end + 1e6
