"""The Open Inference Protocol over HTTP: unmodified clients and curl against a live server, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from inference_support import (
    IMAGES,
    SERVER,
    assert_bad_image_alone,
    assert_own_words,
    assert_rows,
    assert_subset,
    expected,
    triton_found,
)
from PIL import Image
from rest_support import INFER, LENGTH, Reply, as_binary, as_json, ask, binary_images
from service_support import (
    CLASSES,
    Valve,
    config,
    encoded,
    marked,
    noise,
    process_serving,
    publish_tiny,
    running,
    tiny_served,
    until,
)
from tls_support import Pems

from askance.errors import AskanceError
from askance.service.call import Role
from askance.service.guard.access import ClientConfig, new_token
from askance.service.guard.admission import State
from askance.service.guard.tls import TlsConfig
from askance.service.launch import launched
from askance.service.protocols import rest_connection
from askance.service.server import Server

CHECKS = Path(__file__).with_name("triton_rest_checks.py")
KINDS = ("uint8", "fp32", "encoded", "json", "json_fp32", "async")


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tritonclient got, in a process of its own, from a server in another."""
    return triton_found(CHECKS, tmp_path_factory.mktemp("triton-rest"), "rest_port")


def test_tritonclient_finds_the_server_and_the_model(triton: dict[str, Any]) -> None:
    version = triton["bundle"][:12]
    assert triton["live"] and triton["ready"]
    assert triton["model_ready"] == [True, False, False]
    assert triton["server"]["name"] == "askance"
    assert {"classification", "binary_tensor_data"} <= set(triton["server"]["extensions"])
    assert triton["index"] == [{"name": "tiny", "version": version, "state": "READY"}]
    metadata = triton["metadata"]
    assert (metadata["name"], metadata["versions"]) == ("tiny", [version])
    assert metadata["inputs"] == [
        {"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]},
        {"name": "encoded", "datatype": "BYTES", "shape": [-1, 1]},
    ]
    assert {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(CLASSES)]} in metadata["outputs"]
    assert triton["config"]["max_batch_size"] == 32
    assert triton["config"]["input"][0] == {"name": "image", "data_type": "TYPE_FP32", "dims": [1, 8, 8]}


@pytest.mark.parametrize("kind", KINDS)
def test_tritonclient_gets_the_screens_own_words(triton: dict[str, Any], kind: str) -> None:
    assert_own_words(triton, kind)


def test_requested_outputs_come_in_the_order_asked_for(triton: dict[str, Any]) -> None:
    assert_subset(triton)


def test_a_bad_image_fails_alone(triton: dict[str, Any]) -> None:
    assert_bad_image_alone(triton)


def test_the_classification_extension(triton: dict[str, Any]) -> None:
    """`class_count=2`: the two most probable classes as value:index:label, as JSON and as bytes."""
    for rows in triton["classes"]:
        for row, one in zip(rows, expected(), strict=True):
            first, second = (text.split(":") for text in row)
            order = sorted(range(len(CLASSES)), key=lambda i: -one.probabilities[i])
            assert (first[1:], second[1:]) == ([str(order[0]), one.label], [str(order[1]), CLASSES[order[1]]])
            assert float(first[0]) == pytest.approx(max(one.probabilities), abs=1e-5)


def test_tritonclients_asyncio(triton: dict[str, Any]) -> None:
    found = triton["asyncio"]
    assert found["live"] and found["ready"] and found["model_ready"]
    assert found["metadata"] == triton["metadata"]
    assert len(found["single"]) == len(IMAGES)
    for answer, row in zip(found["single"], expected(), strict=True):
        assert_rows(answer, [row])


SHAPE = "image.shape: expected [N, 1, 8, 8] (channels, height, width), N from 1 to 32, got"
REFUSED = {
    "shape": (400, f"{SHAPE} [4, 1, 4, 8]"),
    "datatype": (400, "image.datatype: expected FP32 or UINT8, got 'FP64'"),
    "name": (400, "inputs[0].name: expected image or encoded, got 'pixels'"),
    "model": (404, "model 'another' is not served: tiny version"),
    "version": (404, "model 'tiny 12' is not served: tiny version"),
    "output": (400, "outputs: expected names among label, index,"),
    "batch": (400, f"{SHAPE} [400, 1, 8, 8]"),
    "only_nan": (400, "image: expected finite values in [0, 1], got nan at [0, 0, 0]"),
    "compressed": (501, "compressed bodies are not accepted: send it as it is"),
    "shared_memory": (404, "there is no GET /v2/systemsharedmemory/status"),
    "admin": (
        401,
        "this takes a client with the role 'admin': send a bearer token, or a certificate, of one; the server's ",
    ),
    "deadline": (504, "the deadline passed while the request was waiting"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_tritonclient_is_told_what_was_wrong(triton: dict[str, Any], what: str) -> None:
    status, line = REFUSED[what]
    found = triton["refused"][what]
    assert found[0] == str(status)
    assert found[1].startswith(line)
    assert "\n" not in found[1]


def test_statistics_count_images_and_calls(triton: dict[str, Any]) -> None:
    (row,) = triton["statistics"]["model_stats"]
    # nine whole batches (one of them asks for its classes in two ways), and one of which an image failed
    assert row["inference_count"] == 9 * 4 + 3
    assert row["inference_stats"]["success"]["count"] == 10
    assert row["last_inference"] > 1_700_000_000_000
    assert triton["all_statistics"]["model_stats"][0]["name"] == "tiny"


# curl


@pytest.fixture(scope="module")
def curl(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`curl(path, ...)`: its status, headers and body, from a server in a process of its own."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    folder = tmp_path_factory.mktemp("curl")
    publish_tiny(folder / "bundle", "service_support:TinyClassifier")
    with launched(["-c", SERVER, str(folder / "bundle")]) as serving:

        def run(path: str, *options: str, content: bytes = b"") -> Reply:
            head = folder / "head"
            url = f"http://127.0.0.1:{serving.rest_port}{path}"
            command = ["curl", "-sS", "--noproxy", "*", "-D", str(head), *options, url]
            done = subprocess.run(command, input=content, capture_output=True, check=True, timeout=60)
            lines = head.read_text().strip().split("\r\n\r\n")[-1].splitlines()  # after a 100 Continue
            headers = dict(line.split(": ", 1) for line in lines[1:])
            named = {LENGTH if key.lower() == LENGTH.lower() else key: value for key, value in headers.items()}
            return Reply(int(lines[0].split()[1]), named, done.stdout)

        yield run


def test_curl_with_json(curl: Callable[..., Reply]) -> None:
    body = json.dumps(as_json(IMAGES, id="7")).encode()
    reply = curl(INFER, "-H", "Content-Type: application/json", "-d", "@-", content=body)
    assert reply.status == 200
    assert reply.json["id"] == "7"
    assert reply.outputs["label"] == [one.label for one in expected()]
    assert reply.outputs["verdict"] == [one.verdict.value for one in expected()]
    assert reply.outputs["p_value"] == [one.fused.p_value for one in expected()]


def test_curl_with_binary(curl: Callable[..., Reply]) -> None:
    body, headers = binary_images(IMAGES)
    reply = curl(INFER, "-H", f"{LENGTH}: {headers[LENGTH]}", "--data-binary", "@-", content=body)
    assert reply.status == 200
    assert reply.outputs["verdict"] == [one.verdict.value for one in expected()]


def test_curl_asks_how_the_server_is(curl: Callable[..., Reply]) -> None:
    assert curl("/v2/health/ready").json == {"ready": True}
    assert curl("/v2/models/tiny/ready").status == 200
    assert curl("/v2/models/another/ready").status == 400
    assert curl("/v2/models/tiny").json["platform"] == "askance_pytorch"
    assert curl("/v2/health/live", "-I").status == 200  # HEAD
    reply = curl("/nothing")
    assert (reply.status, reply.error) == (404, "there is no GET /nothing")
    reply = curl(INFER)
    assert (reply.status, reply.headers["allow"]) == (405, "POST")


# In this process


def rest(service: Any) -> int:
    """The port."""
    return int(service.server.ports.others["rest"])


def infer(body: bytes | Mapping[str, Any], **settings: Any) -> Reply:
    """One request to infer, to a server of its own."""

    async def main() -> Reply:
        async with running(settings=config(rest_port=0)) as service:
            return await ask(rest(service), INFER, body, **settings)

    return asyncio.run(main())


def test_nothing_listens_unless_the_port_is_set() -> None:
    async def main() -> None:
        async with running() as service:
            assert "rest" not in service.server.ports.others

    asyncio.run(main())


def test_every_way_to_send_images_is_the_same() -> None:
    floats = (IMAGES / 255).astype(np.float32)
    files = [encoded(Image.fromarray(image[0])) for image in IMAGES]
    packed = b"".join(struct.pack("<I", len(file)) + file for file in files)
    nested = as_json(IMAGES)
    nested["inputs"][0]["data"] = IMAGES.tolist()
    in_base64 = [base64.b64encode(file).decode() for file in files]
    tensor: dict[str, Any] = {"name": "encoded", "datatype": "BYTES", "parameters": {"content_type": "base64"}}
    bodies: list[tuple[Any, dict[str, str]]] = [
        (as_json(IMAGES), {}),
        (as_json(floats), {}),
        (nested, {}),
        binary_images(IMAGES),
        binary_images(floats),
        as_binary(packed, name="encoded", datatype="BYTES", shape=[4, 1]),
        ({"inputs": [tensor | {"shape": [4], "data": in_base64}]}, {}),
        ({"inputs": [tensor | {"shape": [4, 1], "data": [[one] for one in in_base64]}]}, {}),
    ]

    async def main() -> None:
        async with running(settings=config(rest_port=0)) as service:
            for body, headers in bodies:
                reply = await ask(rest(service), INFER, body, headers=headers)
                assert reply.status == 200, reply.body
                assert reply.outputs["label"] == [one.label for one in expected()]
                assert reply.outputs["p_value"] == [one.fused.p_value for one in expected()]

    asyncio.run(main())


def test_outputs_come_as_they_were_asked_for() -> None:
    """Binary by request, by output, or not; the tensors stand behind the JSON in its order."""
    asked = {"outputs": [{"name": "index", "parameters": {"binary_data": True}}, {"name": "label"}]}
    reply = infer(as_json(IMAGES, **asked))
    index, label = reply.json["outputs"]
    assert index["parameters"] == {"binary_data_size": 16}
    assert "data" not in index
    assert reply.body[int(reply.headers[LENGTH]) :] == struct.pack("<4i", *(one.index for one in expected()))
    assert label["data"] == [one.label for one in expected()]
    assert reply.headers["content-type"] == "application/octet-stream"
    reply = infer(as_json(IMAGES, parameters={"binary_data_output": True}))
    assert all("data" not in output for output in reply.json["outputs"])
    sizes = [output["parameters"]["binary_data_size"] for output in reply.json["outputs"]]
    assert len(reply.body) == int(reply.headers[LENGTH]) + sum(sizes)


def test_what_is_no_number_is_null() -> None:
    spoiled = (IMAGES / 255).astype(np.float32)
    spoiled[1, 0, 0, 0] = 2.0
    reply = infer(as_json(spoiled))
    assert reply.outputs["p_value"][1] is None
    assert reply.outputs["verdict"][1] == "ERROR"
    assert b"NaN" not in reply.body
    assert reply.outputs["error"][1].startswith("image: expected finite values in [0, 1], got 2")


def tensor(**changes: Any) -> dict[str, Any]:
    return {"inputs": [as_json(IMAGES[:1])["inputs"][0] | changes]}


PIXELS = [0] * 64
MALFORMED: dict[str, tuple[Any, str]] = {
    "nothing": (b"", "the body is not JSON: "),
    "not JSON": (b"{", "the body is not JSON: "),
    "NaN": (b'{"inputs": [NaN]}', "the body is not JSON: "),
    "deep": (b"[" * 100_000, "the body is not JSON: "),
    "no text": (b'{"id": "\xff"}', "the body is not JSON: "),
    "a list": (b"[]", "body: expected an object"),
    "no inputs": ({}, "inputs: expected, and not there"),
    "inputs of a kind": ({"inputs": 3}, "inputs: expected a valid list"),
    "many inputs": ({"inputs": [as_json(IMAGES[:1])["inputs"][0]] * 65}, "inputs: "),
    "two inputs": ({"inputs": tensor()["inputs"] * 2}, "inputs: expected one, image or encoded, got 2"),
    "shape of text": (tensor(shape=["1"]), "inputs.0.shape.0: expected a valid integer"),
    "shape of fractions": (tensor(shape=[1.0, 1, 8, 8]), "inputs.0.shape.0: expected a valid integer"),
    "negative shape": (tensor(shape=[-1, 1, 8, 8]), f"{SHAPE} [-1, 1, 8, 8]"),
    "no data": (tensor(data=None), "inputs[0].data: expected a list, or binary_data_size and bytes behind the JSON"),
    "data of text": (tensor(data=["0"] * 64), "inputs[0].data: expected numbers, got something else"),
    "data of truths": (tensor(data=[True] * 64), "inputs[0].data: expected numbers, got something else"),
    "data of null": (tensor(data=[None] * 64), "inputs[0].data: expected numbers, got something else"),
    "data mixed": (tensor(data=[0, [0]]), "inputs[0].data: expected numbers, got something else"),
    "data ragged": (tensor(data=[[0], [0, 0]]), "inputs[0].data: expected a flat list, or one nested as the shape"),
    "few data": (tensor(data=[0]), "image.data: expected 64 values, got 1"),
    "fractions": (tensor(data=[0.5] * 64), "image.data: expected values from 0 to 255, got 0.5"),
    "too great": (tensor(data=[2**70] * 64), "image.data: expected values from 0 to 255"),
    "infinite": (tensor(datatype="FP32", data=[1e300] * 64), "image: expected finite values in [0, 1], got inf"),
    "size beyond": (tensor(data=None, parameters={"binary_data_size": 64}), "inputs[0].parameters.binary_data_size: "),
    "size of text": (tensor(data=None, parameters={"binary_data_size": "x"}), "inputs[0].parameters.binary_data_size"),
    "size and data": (tensor(parameters={"binary_data_size": 0}), "inputs[0].data: expected nothing beside"),
    "file as text": (
        {"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1], "data": ["hello"]}]},
        "encoded: expected",
    ),
    "no base64": (
        {
            "inputs": [
                {
                    "name": "encoded",
                    "datatype": "BYTES",
                    "shape": [1],
                    "data": ["!"],
                    "parameters": {"content_type": "base64"},
                }
            ]
        },
        "inputs[0].data: expected base64, as the parameter content_type says",
    ),
    "long name": (tensor(name="x" * 10_000), "inputs[0].name: expected image or encoded, got 'xxxx"),
    "long parameter": (tensor(parameters={"y" * 10_000: []}), "inputs.0.parameters.yyy"),
    "timeout of text": (
        as_json(IMAGES[:1], parameters={"timeout": "soon"}),
        "parameters[timeout]: expected a whole number of microseconds, got 'soon'",
    ),
    "class count": (
        as_json(IMAGES[:1], outputs=[{"name": "probabilities", "parameters": {"classification": 9}}]),
        "outputs[probabilities].parameters.classification: expected a number of classes from 1 to 4, got 9",
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_requests_get_one_line(what: str) -> None:
    body, line = MALFORMED[what]
    reply = infer(body)
    assert reply.status == 400
    assert reply.error.startswith(line)
    assert len(reply.error) < 1000


def test_null_is_what_is_not_there() -> None:
    request = as_json(IMAGES, id=None, outputs=None, parameters={"timeout": None})
    request["inputs"][0] |= {"parameters": None, "unknown": 1}
    reply = infer(request)
    assert reply.outputs["label"] == [one.label for one in expected()]
    assert "id" not in reply.json


def test_shared_memory_is_not_served() -> None:
    reply = infer(tensor(parameters={"shared_memory_region": "x"}))
    assert (reply.status, reply.error) == (501, "shared memory is not served: send the contents")


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "999999", "9" * 30, "\u0661"])
def test_the_length_of_the_json_is_believed_only_where_it_can_be(length: str) -> None:
    body, _ = binary_images(IMAGES[:1])
    reply = infer(body, headers={LENGTH: length.encode().decode("latin-1")})
    assert reply.status == 400
    assert reply.error.startswith("header inference-header-content-length: expected the length of the JSON")


def test_bytes_that_nobody_claims_are_refused() -> None:
    body, headers = binary_images(IMAGES[:1])
    reply = infer(body + b"more", headers=headers)
    assert reply.error == "body: expected 64 bytes behind the JSON, as binary_data_size says, got 68"


def test_a_request_that_is_too_large_is_not_kept() -> None:
    async def main() -> None:
        async with running(settings=config(rest_port=0, max_message_bytes=2048)) as service:
            line = "a request may hold 2048 bytes: send less at once"
            reply = await ask(rest(service), INFER, b" " * 4096)
            assert (reply.status, reply.error) == (413, line)

            async def parts() -> Any:
                for _ in range(8):
                    yield b" " * 512

            reply = await ask(rest(service), INFER, parts())  # chunked: no length is told
            assert (reply.status, reply.error) == (413, line)

    asyncio.run(main())


def test_models_are_loaded_anew_and_unloaded_by_whoever_may(tmp_path: Path) -> None:
    token, digest = new_token()
    operator = ClientConfig(name="operator", token_sha256=digest, roles=frozenset({Role.ADMIN}))
    headers = {"Authorization": f"Bearer {token}"}
    load, unload = "/v2/repository/models/tiny/load", "/v2/repository/models/tiny/unload"

    async def main() -> None:
        async with running(settings=config(rest_port=0, clients=(operator,))) as service:
            port = rest(service)
            assert (await ask(port, load, b"")).status == 401
            assert (await ask(port, load, b"", headers=headers)).status == 200
            assert service.value("askance_bundle_reloads_total", result="unchanged") == 1
            reply = await ask(port, load, {"parameters": {"config": "{}"}}, headers=headers)
            assert reply.error.startswith("parameters: expected none: a model is loaded from where it is")
            reply = await ask(port, unload, {"parameters": {"unload_dependents": False}}, headers=headers)
            assert reply.status == 400
            assert "default" in reply.error or "answers" in reply.error
            assert (await ask(port, "/v2/repository/models/other/load", b"", headers=headers)).status == 404

    asyncio.run(main())


def test_health_follows_the_servers_state() -> None:
    async def main() -> None:
        async with Server(config(rest_port=0)) as server:
            port = server.ports.others["rest"]

            async def states() -> list[int]:
                paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready", "/v2")
                return [(await ask(port, path)).status for path in paths]

            assert await states() == [200, 400, 400, 503]
            await server.deploy(tiny_served)
            assert await states() == [200, 200, 200, 200]
            server.admission.state = State.DRAINING
            assert await states() == [200, 400, 400, 503]

    asyncio.run(main())


def test_a_client_that_goes_away_is_not_worked_for() -> None:
    """It is cancelled before its turn comes: the classifier never sees its image, and its place is free again."""

    async def main() -> None:
        valve = Valve()
        async with running(tiny_served(valve), config(rest_port=0)) as service:
            valve.shut()
            first = asyncio.ensure_future(ask(rest(service), INFER, as_json(marked(0.25)[None])))
            await until(valve.entered.is_set)
            gone = asyncio.ensure_future(ask(rest(service), INFER, as_json(marked(0.75)[None])))
            await until(lambda: service.value("askance_queue_depth") == 1)
            gone.cancel()
            await until(lambda: service.value("askance_queue_depth") == 0)
            valve.opened.set()
            assert (await first).status == 200
            assert valve.seen == [0.25]
            assert service.value("askance_requests_total", method="RestModelInfer", code="CANCELLED") == 1
            assert service.value("askance_rejected_total", reason="cancelled") == 1

    asyncio.run(main())


async def talk(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """What a server says to bytes, until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(pause)
    said = await reader.read()
    writer.close()
    return said


def test_a_head_that_does_not_end_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_connection, "HEAD_SECONDS", 0.2)

    async def main() -> None:
        async with running(settings=config(rest_port=0)) as service:
            port = rest(service)
            assert await talk(port) == b""
            assert await talk(port, b"GET /v2 HTTP/1.1\r\nx: ") == b""
            # and the second request of a connection
            said = await talk(port, b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\nGET /v2 HT")
            assert said.startswith(b"HTTP/1.1 200 OK")
            for endless in (b"GET /v2 HTTP/1.1\r\nx: " + b"y" * 70_000, b"GET /" + b"y" * 70_000, b"\r\n" * 40_000):
                assert (await talk(port, endless)).startswith(b"HTTP/1.1 4")
            assert (await ask(port, "/v2/health/live")).status == 200

    asyncio.run(main())


def test_a_body_that_does_not_end_is_not_waited_for() -> None:
    async def main() -> None:
        async with running(settings=config(rest_port=0, receive_seconds=0.2)) as service:
            head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 100\r\n\r\n"
            said = await talk(rest(service), head.encode(), b"{")
            assert said.startswith(b"HTTP/1.1 499")
            assert b"the request did not arrive within 0.2 s" in said
            assert service.server.admission.calls == 0

    asyncio.run(main())


def test_nobody_says_where_somebody_else_comes_from() -> None:
    """The limits of an anonymous client go by the address that it has, not by one that it names."""

    async def main() -> None:
        async with running(settings=config(rest_port=0, client_rate=0.001, client_burst=1)) as service:
            for i, status in enumerate((200, 429, 429)):
                headers = {"X-Forwarded-For": f"10.0.0.{i}", "Forwarded": f"for=10.0.0.{i}"}
                assert (await ask(rest(service), INFER, as_json(IMAGES[:1]), headers=headers)).status == status

    asyncio.run(main())


# TLS


def trusting(pems: Pems, name: str | None = None) -> ssl.SSLContext:
    """What believes the authority as it is now, and shows a certificate of its own where a name is given."""
    context = ssl.create_default_context(cadata=pems.authority.cert_pem.bytes().decode())
    if name is not None:
        context.load_cert_chain(*pems.issue(name, f"{name}.example", common_name=name))
    return context


@pytest.fixture
def pems(tmp_path: Path) -> Pems:
    import trustme

    return Pems(tmp_path, trustme.CA())


def test_tls_and_the_clients_certificate(pems: Pems) -> None:
    certificate, key = pems.issue("server", "127.0.0.1")
    tls = TlsConfig(certificate=certificate, key=key, client_ca=pems.ca)
    known = (
        ClientConfig(name="edge", certificate="edge.example", roles=frozenset({Role.PREDICT})),
        ClientConfig(name="core", certificate="core", roles=frozenset({Role.PREDICT, Role.SCORES})),
    )

    async def main() -> None:
        settings = config(rest_port=0, tls=tls, clients=known, anonymous=frozenset())
        async with running(settings=settings) as service:
            port = rest(service)
            reply = await ask(port, INFER, as_json(IMAGES), tls=trusting(pems, "edge"))
            assert reply.outputs["label"] == [one.label for one in expected()]
            assert "p_value" not in reply.outputs
            reply = await ask(port, INFER, as_json(IMAGES), tls=trusting(pems, "core"))  # by its common name
            assert reply.outputs["p_value"] == [one.fused.p_value for one in expected()]
            reply = await ask(port, INFER, as_json(IMAGES), tls=trusting(pems, "guest"))
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
            with pytest.raises((OSError, aiohttp.ClientError)):  # without one
                await ask(port, "/v2/health/live", tls=trusting(pems))
            with pytest.raises((OSError, aiohttp.ClientError)):  # in the clear
                await ask(port, "/v2/health/live")

    asyncio.run(main())


def test_a_renewed_certificate_is_served_and_a_broken_one_is_not(pems: Pems) -> None:
    import trustme

    certificate, key = pems.issue("server", "127.0.0.1")

    async def main() -> None:
        tls = TlsConfig(certificate=certificate, key=key)
        async with running(settings=config(rest_port=0, tls=tls)) as service:
            port, first = rest(service), trusting(pems)
            assert (await ask(port, "/v2/health/live", tls=first)).status == 200
            pems.authority = trustme.CA()
            pems.issue("server", "127.0.0.1")
            second = trusting(pems)
            assert (await ask(port, "/v2/health/live", tls=second)).status == 200
            with pytest.raises(aiohttp.ClientError):
                await ask(port, "/v2/health/live", tls=first)
            pems.write("server.key", b"half of a ke")
            assert (await ask(port, "/v2/health/live", tls=second)).status == 200

    asyncio.run(main())


# The program


def test_a_port_that_is_taken_is_named() -> None:
    async def main(port: int) -> None:
        async with Server(config(rest_port=port)):
            raise AssertionError("it listens")

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AskanceError, match=f"port {port} on 127.0.0.1 is in use: .* choose another rest_port"):
            asyncio.run(main(port))


def test_the_command_serves_it_and_drains(tmp_path: Path) -> None:
    """A connection that is kept open does not keep the server; `process_serving` waits for its exit code, 0."""
    publish_tiny(tmp_path / "bundle", "service_support:TinyClassifier")
    free = ("--port", "0", "--metrics-port", "0", "--rest-port", "0")
    with process_serving(tmp_path / "bundle", *free) as (_, serving):
        assert serving.rest_port is not None
        with socket.create_connection(("127.0.0.1", serving.rest_port)) as kept:
            kept.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
            assert kept.recv(4096).startswith(b"HTTP/1.1 200 OK")
            body = json.dumps(as_json(noise(1)[None])).encode()
            assert asyncio.run(ask(serving.rest_port, INFER, body)).status == 200
