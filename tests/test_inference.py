"""The Open Inference Protocol: an unmodified tritonclient against a live server, and every malformed request's line."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_support import (
    IMAGES,
    answers,
    assert_bad_image_alone,
    assert_own_words,
    assert_rows,
    assert_subset,
    expected,
    triton_found,
)
from PIL import Image
from service_support import (
    CLASSES,
    GREY,
    SIDE,
    Valve,
    config,
    encoded,
    marked,
    running,
    status_of,
    tiny_screen,
    tiny_served,
    until,
)

from askance.screening.images import Pixels
from askance.service.errors import Code, StatusError
from askance.service.guard.admission import State
from askance.service.pb.inference import inference_pb2 as pb
from askance.service.pb.inference import inference_pb2_grpc
from askance.service.protocols import METHODS, PROTOCOLS, SERVICES
from askance.service.protocols.inference import _request
from askance.service.protocols.inference_tensors import _elements, images_of, outputs_of
from askance.service.server import Server

CHECKS = Path(__file__).with_name("triton_checks.py")


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tritonclient got, in a process of its own, from a server in another."""
    return triton_found(CHECKS, tmp_path_factory.mktemp("triton"), "port")


def test_tritonclient_finds_the_server_and_the_model(triton: dict[str, Any]) -> None:
    version = triton["bundle"][:12]
    assert triton["live"] and triton["ready"]
    assert triton["model_ready"] == [True, False, False]
    assert triton["server"]["name"] == "askance"
    assert triton["index"]["models"] == [{"name": "tiny", "version": version, "state": "READY"}]
    metadata = triton["metadata"]
    assert (metadata["name"], metadata["versions"]) == ("tiny", [version])
    assert metadata["inputs"][0] == {"name": "image", "datatype": "FP32", "shape": ["-1", "1", "8", "8"]}
    assert metadata["inputs"][1] == {"name": "encoded", "datatype": "BYTES", "shape": ["-1", "1"]}
    shapes = {output["name"]: (output["datatype"], output["shape"]) for output in metadata["outputs"]}
    assert shapes["label"] == ("BYTES", ["-1", "1"])
    assert shapes["probabilities"] == ("FP32", ["-1", str(len(CLASSES))])
    assert shapes["scores"] == ("FP64", ["-1", "2"])
    described = triton["config"]["config"]
    assert described["max_batch_size"] == 32
    assert described["input"][0] == {"name": "image", "data_type": "TYPE_FP32", "dims": ["1", "8", "8"]}
    assert described["input"][1]["optional"]


@pytest.mark.parametrize("kind", ["uint8", "fp32", "encoded"])
def test_tritonclient_gets_the_screens_own_words(triton: dict[str, Any], kind: str) -> None:
    assert_own_words(triton, kind)


def test_requested_outputs_come_in_the_order_asked_for(triton: dict[str, Any]) -> None:
    assert_subset(triton)


def test_a_bad_image_fails_alone(triton: dict[str, Any]) -> None:
    assert_bad_image_alone(triton)


REFUSED = {
    "shape": (
        "INVALID_ARGUMENT",
        "image.shape: expected [N, 1, 8, 8] (channels, height, width), N from 1 to 32, got [4, 1, 4, 8]",
    ),
    "datatype": ("INVALID_ARGUMENT", "image.datatype: expected FP32 or UINT8, got 'FP64'"),
    "name": ("INVALID_ARGUMENT", "inputs[0].name: expected image or encoded, got 'pixels'"),
    "model": ("NOT_FOUND", "model 'another' is not served: tiny version"),
    "version": ("NOT_FOUND", "model 'tiny 12' is not served: tiny version"),
    "output": ("INVALID_ARGUMENT", "outputs: expected names among label, index,"),
    "batch": (
        "INVALID_ARGUMENT",
        "image.shape: expected [N, 1, 8, 8] (channels, height, width), N from 1 to 32, got [400, 1, 8, 8]",
    ),
    "only_nan": ("INVALID_ARGUMENT", "image: expected finite values in [0, 1], got nan at [0, 0, 0]"),
    "shared_memory": ("UNIMPLEMENTED", ""),
    "deadline": ("DEADLINE_EXCEEDED", ""),  # whoever notices first says it
}


@pytest.mark.parametrize("what", REFUSED)
def test_tritonclient_is_told_what_was_wrong(triton: dict[str, Any], what: str) -> None:
    code, line = REFUSED[what]
    found = triton["refused"][what]
    assert code in found[0]
    assert found[1].startswith(line)
    assert "\n" not in found[1]


def test_tritonclients_stream_and_asyncio(triton: dict[str, Any]) -> None:
    rows = expected()
    answers = triton["stream"]
    assert len(answers) == 5
    assert "model 'another' is not served" in answers.pop(2)
    for i, answer in zip((0, 1, 3), answers, strict=False):
        assert answer["id"] == str(i)
        assert_rows(answer, [rows[i]])
    assert triton["asyncio"]["ready"]
    for kind in ("single", "streamed"):
        assert len(triton["asyncio"][kind]) == len(rows)
        for answer, row in zip(triton["asyncio"][kind], rows, strict=True):
            assert_rows(answer, [row])


def test_our_messages_are_the_protocols(triton: dict[str, Any]) -> None:
    """Every message and field of ours is in tritonclient's own stubs, under the same number and type."""

    def check(messages: Any) -> None:
        for message in messages:
            theirs = triton["protocol"][message.full_name]
            for field in message.fields:
                ours = [field.number, field.type, field.is_repeated]
                assert theirs[field.name] == ours, field.full_name
            check(message.nested_types)

    check(pb.DESCRIPTOR.message_types_by_name.values())


def test_statistics_count_images_and_calls(triton: dict[str, Any]) -> None:
    (row,) = triton["statistics"]["model_stats"]
    # three whole batches, one without explanation asked for, one with an image that never reached the classifier
    assert int(row["inference_count"]) == 4 + 4 + 4 + 4 + 3
    assert 5 <= int(row["execution_count"]) <= 19
    assert int(row["inference_stats"]["success"]["count"]) == 5
    assert int(row["inference_stats"]["compute_infer"]["ns"]) > 0
    assert int(row["last_inference"]) > 1_700_000_000_000


# Below, our own stubs, in this process


def request(images: np.ndarray[Any, Any] = IMAGES, **changes: Any) -> pb.ModelInferRequest:
    datatype = {"u": "UINT8", "f": "FP32"}[images.dtype.kind]
    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype=datatype, shape=images.shape)
    made = pb.ModelInferRequest(model_name="tiny", inputs=[tensor], raw_input_contents=[images.tobytes()])
    made.MergeFrom(pb.ModelInferRequest(**changes))
    return made


def typed(images: np.ndarray[Any, Any], name: str, values: list[Any]) -> pb.ModelInferRequest:
    made = request(images)
    made.ClearField("raw_input_contents")
    getattr(made.inputs[0].contents, name).extend(values)
    return made


def files(elements: list[bytes], shape: list[int], raw: bytes | None = None) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="tiny")
    tensor = made.inputs.add(name="encoded", datatype="BYTES", shape=shape)
    if raw is None:
        tensor.contents.bytes_contents.extend(elements)
    else:
        made.raw_input_contents.append(raw)
    return made


def read(made: pb.ModelInferRequest) -> list[Pixels]:
    return [image.read(GREY, 10_000) for image in images_of(_request(made), GREY, 32)]


def test_typed_and_raw_contents_are_the_same_images() -> None:
    expected_images = list(IMAGES.astype(np.float32) / 255)
    floats = (IMAGES / 255).astype(np.float32)
    contents = [encoded(Image.fromarray(image[0])) for image in IMAGES]
    raw = b"".join(struct.pack("<I", len(content)) + content for content in contents)
    for made in (
        request(),
        request(floats),
        typed(IMAGES, "uint_contents", IMAGES.flatten().tolist()),
        typed(floats, "fp32_contents", floats.flatten().tolist()),
        files(contents, [4]),
        files(contents, [4, 1]),
        files([], [4, 1], raw),
    ):
        for image, reference in zip(read(made), expected_images, strict=True):
            np.testing.assert_allclose(image, reference, rtol=0, atol=1e-7)


def two_inputs() -> pb.ModelInferRequest:
    made = request()
    made.inputs.append(made.inputs[0])
    return made


def shared() -> pb.ModelInferRequest:
    made = request()
    made.inputs[0].parameters["shared_memory_region"].string_param = "x"
    return made


def both() -> pb.ModelInferRequest:
    made = request()
    made.inputs[0].contents.uint_contents.append(1)
    return made


MALFORMED: dict[str, tuple[Callable[[], pb.ModelInferRequest], str]] = {
    "no input": (pb.ModelInferRequest, "inputs: expected one, image or encoded, got 0"),
    "two inputs": (two_inputs, "inputs: expected one, image or encoded, got 2"),
    "two raw": (
        lambda: request(raw_input_contents=[b""]),
        "raw_input_contents: expected one entry for one input, got 2",
    ),
    "both": (both, "inputs[0].contents: expected nothing beside raw_input_contents, got both"),
    "shared memory": (shared, "shared memory is not served: send the contents"),
    "no images": (
        lambda: request(IMAGES[:0]),
        "image.shape: expected [N, 1, 8, 8] (channels, height, width), N from 1 to 32, got [0, 1, 8, 8]",
    ),
    "no batch": (
        lambda: request(IMAGES[0]),
        "image.shape: expected [N, 1, 8, 8] (channels, height, width), N from 1 to 32, got [1, 8, 8]",
    ),
    "no shape": (
        lambda: request(np.array(1, np.uint8)),
        "image.shape: expected [N, 1, 8, 8] (channels, height, width), N from 1 to 32, got []",
    ),
    "few bytes": (
        lambda: typed(IMAGES, "uint_contents", []),
        "image.contents.uint_contents: expected 256 values, got 0",
    ),
    "large": (
        lambda: typed(IMAGES, "uint_contents", [256] * 256),
        "image.contents.uint_contents: expected values from 0 to 255, got 256",
    ),
    "files shape": (lambda: files([b"x"], [1, 2]), "encoded.shape: expected [N] or [N, 1], N from 1 to 32, got [1, 2]"),
    "files count": (lambda: files([b"x"], [2]), "encoded's contents: expected 2 elements, got 1"),
    "files cut": (
        lambda: files([], [1], struct.pack("<I", 9) + b"abc"),
        "encoded's contents: expected each element after its length (4 bytes), got fewer bytes",
    ),
    "files stub": (
        lambda: files([], [1], b"ab"),
        "encoded's contents: expected each element after its length (4 bytes), got fewer bytes",
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_requests_get_one_line(what: str) -> None:
    make, line = MALFORMED[what]
    with pytest.raises(StatusError) as caught:
        images_of(_request(make()), GREY, 32)
    assert str(caught.value) == line


def test_raw_bytes_must_fill_the_shape() -> None:
    made = request()
    made.raw_input_contents[0] = b"123"
    with pytest.raises(StatusError, match=r"image's contents: expected 256 bytes, got 3"):
        images_of(_request(made), GREY, 32)


@given(st.lists(st.binary(max_size=20), max_size=8))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_bytes_tensors_read_back(elements: list[bytes]) -> None:
    assert _elements(b"".join(struct.pack("<I", len(one)) + one for one in elements), len(elements)) == elements


@given(st.binary(max_size=64))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_bytes_are_elements_or_refused(raw: bytes) -> None:
    try:
        elements = _elements(raw, 64)
    except StatusError as error:
        assert error.code is Code.INVALID_ARGUMENT
    else:
        assert sum(4 + len(one) for one in elements) == len(raw)


def test_outputs_are_little_endian_rows() -> None:
    outputs = outputs_of(tiny_screen())
    found, rows = answers()[:2], expected()[:2]

    def packed(name: str) -> bytes:
        tensor = outputs[name].tensor(found)
        assert tensor.shape == (2, outputs[name].width)
        return tensor.packed()

    assert packed("label") == b"".join(struct.pack("<I", 3) + one.label.encode() for one in rows)
    assert packed("index") == struct.pack("<2i", *(one.index for one in rows))
    assert packed("p_value") == struct.pack("<2d", *(one.fused.p_value for one in rows))
    assert len(packed("probabilities")) == 2 * len(CLASSES) * 4


def stub_of(channel: grpc.aio.Channel) -> Any:
    return inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]


def test_readiness_follows_the_servers_state() -> None:
    async def main() -> None:
        async with (
            Server(config()) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.port}") as channel,
        ):
            stub = stub_of(channel)

            async def ready() -> tuple[bool, bool, bool]:
                live = (await stub.ServerLive(pb.ServerLiveRequest())).live
                model = (await stub.ModelReady(pb.ModelReadyRequest(name="tiny"))).ready
                return live, (await stub.ServerReady(pb.ServerReadyRequest())).ready, model

            assert await ready() == (True, False, False)
            assert (await status_of(stub.ModelInfer(request())))[0] is grpc.StatusCode.UNAVAILABLE
            await server.deploy(tiny_served)
            assert await ready() == (True, True, True)
            server.admission.state = State.DRAINING
            assert await ready() == (True, False, False)

    asyncio.run(main())


def test_a_batch_takes_all_its_places_or_none() -> None:
    """Nine places, of which a held classifier leaves some taken: the batch that does not fit is refused at once."""

    async def main() -> None:
        valve = Valve()
        async with running(tiny_served(valve), config(queue_size=9, max_batch=8)) as service:
            stub = stub_of(service.channel)
            batch = np.stack([marked(0.1 * i) for i in range(6)])
            valve.shut()
            first = asyncio.ensure_future(stub.ModelInfer(request(batch)))
            await until(valve.entered.is_set)  # with the classifier, so that its places are free again
            second = asyncio.ensure_future(stub.ModelInfer(request(batch)))
            await until(lambda: service.value("askance_queue_depth") == 6)
            code, line = await status_of(stub.ModelInfer(request(batch)))
            assert (code, line.startswith("the queue is full (9 requests")) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                True,
            )
            assert service.value("askance_queue_depth") == 6
            third = asyncio.ensure_future(stub.ModelInfer(request(batch[:3])))
            await until(lambda: service.value("askance_queue_depth") == 9)
            valve.opened.set()
            shapes = [(await call).outputs[0].shape[0] for call in (first, second, third)]
            assert shapes == [6, 6, 3]
            assert service.value("askance_queue_depth") == 0

    asyncio.run(main())


def test_a_poisoned_image_fails_alone_in_its_batch() -> None:
    async def main() -> None:
        valve = Valve()
        async with running(tiny_served(valve)) as service:
            batch = np.stack([marked(0.25), marked(Valve.POISON), marked(0.5)])
            response = await stub_of(service.channel).ModelInfer(request(batch))
            verdicts = response.raw_output_contents[[o.name for o in response.outputs].index("verdict")]
            assert [str(one, "utf-8") == "ERROR" for one in _elements(verdicts, 3)] == [False, True, False]
            errors = response.raw_output_contents[[o.name for o in response.outputs].index("error")]
            assert (
                bytes(_elements(errors, 3)[1])
                == b"this image could not be screened: RuntimeError, see the server's log"
            )

    asyncio.run(main())


def test_the_model_takes_no_more_than_the_queue_holds() -> None:
    async def main() -> None:
        async with running(settings=config(queue_size=4)) as service:
            stub = stub_of(service.channel)
            described = await stub.ModelConfig(pb.ModelConfigRequest(name="tiny"))
            assert described.config.max_batch_size == 4
            five = np.zeros((5, 1, SIDE, SIDE), np.uint8)
            code, line = await status_of(stub.ModelInfer(request(five)))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "N from 1 to 4, got [5, 1, 8, 8]" in line

    asyncio.run(main())


def test_every_method_is_counted_under_its_name() -> None:
    async def main() -> None:
        async with running() as service:
            stub = stub_of(service.channel)
            await stub.ModelInfer(request())
            await status_of(stub.ModelInfer(request(model_version="12")))
            await stub.ServerMetadata(pb.ServerMetadataRequest())
            assert service.value("askance_requests_total", method="ModelInfer", code="OK") == 1
            assert service.value("askance_requests_total", method="ModelInfer", code="NOT_FOUND") == 1
            assert service.value("askance_requests_total", method="ServerMetadata", code="OK") == 1
            assert service.value("askance_verdicts_total", verdict="CLEAN") is not None

    asyncio.run(main())


def test_the_methods_with_their_own_label_are_those_of_the_services() -> None:
    from askance.service.pb.askance.v1 import screening_pb2

    named = {
        method.name
        for file in (screening_pb2, pb)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert {method for methods in SERVICES.values() for method in methods} == named
    assert set(SERVICES) == {"inference.GRPCInferenceService", "askance.v1.Screening"}
    assert len(METHODS) == sum(len(protocol.methods) for protocol in PROTOCOLS.values())  # no two share a name
