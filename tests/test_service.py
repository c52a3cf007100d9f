"""The Screening service over real gRPC: answers, bad input, batch mates, the queue's limits, streams, reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from PIL import Image
from service_support import (
    CLASSES,
    CREATED,
    GREY,
    SIDE,
    TinyClassifier,
    Valve,
    config,
    encoded,
    marked,
    noise,
    parts,
    running,
    status_of,
    tiny_screen,
    tiny_served,
    until,
    untypical,
)
from test_images import png_header
from torch import Tensor
from toy import Whole, whole

from askance.detectors import Screen
from askance.detectors.reader import TorchReader
from askance.service.client_messages import answer_of, request_of
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.askance.v1 import screening_pb2_grpc

VERDICTS = {"CLEAN": pb.CLEAN, "SUSPECT": pb.SUSPECT, "ADVERSARIAL": pb.ADVERSARIAL}


def direct(pixels: np.ndarray[Any, Any], explain: bool = False) -> Whole:
    """What the Screen itself says of one image."""
    (result,) = tiny_screen()(torch.from_numpy(pixels)[None].float() / 255, explain)
    return whole(result)


def assert_same(response: pb.ScreenResponse, expected: Whole) -> None:
    assert (response.prediction.index, response.prediction.name) == (expected.index, expected.label)
    assert response.prediction.probability == pytest.approx(expected.probability, rel=1e-5)
    assert list(response.probabilities) == pytest.approx(expected.probabilities, rel=1e-4)
    assert response.verdict == VERDICTS[expected.verdict.value]
    assert response.p_value == expected.fused.p_value
    assert response.score == pytest.approx(expected.fused.score, rel=1e-4)
    assert [word.name for word in response.detectors] == [word.name for word in expected.detectors]
    for word, reference in zip(response.detectors, expected.detectors, strict=True):
        assert word.score == pytest.approx(reference.score, rel=1e-4, abs=1e-5)
        assert word.p_value == reference.p_value
        assert tuple(word.flags) == reference.flags


def test_answers_equal_the_screens_own() -> None:
    async def main() -> None:
        async with running() as service:
            verdicts = set()
            for seed in range(40):
                pixels = noise(seed) if seed % 4 else untypical()
                expected = direct(pixels)
                verdicts.add(expected.verdict)
                for image in (pixels, encoded(Image.fromarray(pixels[0])), (pixels / 255).astype(np.float32)):
                    response = await service.stub.Screen(request_of(image, request_id=f"r{seed}"))
                    assert_same(response, expected)
                    assert response.request_id == f"r{seed}"
                    assert response.bundle_id == "0123456789abcdef" * 4
                    assert not response.detectors[0].HasField("explanation")
            assert len(verdicts) > 1  # else the comparison shows little

    asyncio.run(main())


def test_concurrent_answers_belong_to_their_requests() -> None:
    async def main() -> None:
        async with running() as service:
            images = [noise(seed) for seed in range(60)]
            responses = await asyncio.gather(
                *(service.stub.Screen(request_of(image, request_id=str(i))) for i, image in enumerate(images))
            )
            for i, (image, response) in enumerate(zip(images, responses, strict=True)):
                assert response.request_id == str(i)
                assert_same(response, direct(image))
            assert service.value("askance_batch_size_sum") == 60
            calls = service.value("askance_batch_size_count")
            assert calls is not None and calls < 60  # they shared calls

    asyncio.run(main())


def test_explanations_are_the_detectors_own_and_only_where_asked() -> None:
    async def main() -> None:
        async with running() as service:
            asked, not_asked = await asyncio.gather(
                service.stub.Screen(request_of(noise(7), explain=True)), service.stub.Screen(request_of(noise(7)))
            )
            for word, reference in zip(asked.detectors, direct(noise(7), explain=True).detectors, strict=True):
                assert reference.explanation
                assert word.explanation.WhichOneof("detector") == word.name
            screening = answer_of(asked).screening
            assert screening is not None
            over_the_wire: dict[str, Any] = {word.name: word.explanation for word in screening.detectors}
            in_process = {word.name: word.explanation for word in direct(noise(7), explain=True).detectors}
            assert over_the_wire == in_process
            units = [layer["unit"] for layer in over_the_wire["self_organizing_map"]["layers"]]
            assert all(isinstance(place, int) for unit in units for place in unit)
            assert not any(word.HasField("explanation") for word in not_asked.detectors)

    asyncio.run(main())


def test_describe_says_what_is_served() -> None:
    async def main() -> None:
        async with running() as service:
            said = await service.stub.Describe(pb.DescribeRequest())
            assert (said.bundle_id, said.classifier) == ("0123456789abcdef" * 4, "tiny")
            assert said.created.ToDatetime(CREATED.tzinfo) == CREATED
            assert tuple(said.class_names) == CLASSES
            assert said.input == pb.Input(
                channels=1, height=SIDE, width=SIDE, mean=[0.5], std=[0.25], resize=pb.Input.REFUSE
            )
            assert list(said.layers) == ["hidden", "output"]
            assert [(d.name, list(d.layers)) for d in said.detectors] == [
                ("library_network", ["hidden", "output"]),
                ("self_organizing_map", ["hidden"]),
            ]
            assert [(x.name, x.false_positive_rate) for x in said.levels] == [("suspect", 0.05), ("adversarial", 0.01)]
            assert (said.calibration_samples, said.fusion_samples) == (500, 500)
            assert (said.max_message_bytes, said.max_image_pixels) == (16 * 1024 * 1024, 16_000_000)

    asyncio.run(main())


NAN = marked(float("nan"))
PNG = encoded(Image.fromarray(noise(0)[0]))
BAD_REQUESTS: dict[str, tuple[pb.ScreenRequest, str]] = {
    "neither": (pb.ScreenRequest(), "image: expected encoded or tensor, got neither"),
    "empty": (pb.ScreenRequest(encoded=b""), "encoded: expected a PNG, JPEG or WebP image, got 0 bytes"),
    "not an image": (request_of(b"nonsense"), "encoded: expected a PNG, JPEG or WebP image, got 8 bytes that are none"),
    "truncated": (request_of(PNG[:-30]), "encoded: expected an intact image, got one that cannot be decoded"),
    "wrong size": (request_of(encoded(Image.new("L", (9, 8)))), "encoded: expected an image of 8x8 pixels (width x"),
    "wrong channels": (request_of(encoded(Image.new("RGB", (8, 8)))), "got colour (RGB)"),
    "100 megapixels": (request_of(png_header(10_000, 10_000)), "an image of at most 16000000 pixels, got 10000x10000"),
    "NaN": (request_of(NAN), "tensor.data: expected finite values in [0, 1], got nan at [0, 0, 0]"),
    "infinity": (request_of(marked(float("inf"))), "got inf at [0, 0, 0]"),
    "range": (request_of(marked(7)), "got 7 at [0, 0, 0] (divide pixels 0..255 by 255, or send UINT8)"),
    "shape": (request_of(np.zeros((3, 8, 8), np.float32)), "tensor.shape: expected [1, 8, 8]"),
    "dtype": (
        pb.ScreenRequest(tensor=pb.Tensor(shape=GREY.shape, data=b"1")),
        "tensor.dtype: expected FP32 or UINT8, got DATA_TYPE_UNSPECIFIED",
    ),
    "bytes": (
        pb.ScreenRequest(tensor=pb.Tensor(shape=GREY.shape, dtype=pb.Tensor.UINT8, data=b"1")),
        "tensor.data: expected 64 bytes (1x8x8 UINT8), got 1",
    ),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_input_is_refused_in_one_line_and_the_server_stays_up() -> None:
    async def main() -> None:
        async with running() as service:
            for name, (request, text) in BAD_REQUESTS.items():
                code, details = await status_of(service.stub.Screen(request))
                assert code is grpc.StatusCode.INVALID_ARGUMENT, name
                assert text in details, name
                assert "\n" not in details, name
            assert_same(await service.stub.Screen(request_of(noise(1))), direct(noise(1)))
            assert service.value("askance_rejected_total", reason="invalid") == len(BAD_REQUESTS)
            assert service.value("askance_queue_depth") == 0

    asyncio.run(main())


def test_bytes_that_are_no_message_are_the_clients_error(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with running() as service:
            expected = (
                grpc.StatusCode.INVALID_ARGUMENT,
                "request: expected a message of the method's type, got 3 bytes that are not one",
            )
            channel: Any = service.channel
            unary = channel.unary_unary("/askance.v1.Screening/Screen")
            assert await status_of(unary(b"\xff\xff\xff")) == expected
            stream = channel.stream_stream("/askance.v1.Screening/ScreenStream")
            answer = pb.ScreenStreamResponse.FromString(await stream(iter([b"\xff\xff\xff"])).read())
            assert (answer.error.code, answer.error.message) == (expected[0].value[0], expected[1])
            assert service.value("askance_requests_total", method="Screen", code="INVALID_ARGUMENT") == 1

    asyncio.run(main())
    assert [record for record in caplog.records if record.name.startswith("askance.service")] == []


def test_a_message_over_the_limit_is_refused() -> None:
    async def main() -> None:
        async with running(settings=config(max_message_bytes=2048)) as service:
            code, details = await status_of(service.stub.Screen(pb.ScreenRequest(encoded=b"x" * 4096)))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "2048" in details
            await service.stub.Screen(request_of(noise(1)))

    asyncio.run(main())


def test_a_failing_mate_fails_alone() -> None:
    async def main() -> None:
        valve = Valve()
        async with running(tiny_served(valve)) as service:
            valve.shut()
            first = asyncio.ensure_future(service.stub.Screen(request_of(marked(0.1))))
            await until(valve.entered.is_set)
            values = [0.2, 0.3, Valve.POISON, 0.4]
            mates = []
            for position, value in enumerate(values, start=1):
                mates.append(
                    asyncio.ensure_future(service.stub.Screen(request_of(marked(value), request_id=str(value))))
                )
                await until(lambda n=position: service.value("askance_queue_depth") == n)  # type: ignore[misc]
            valve.opened.set()
            await first
            outcomes = await asyncio.gather(*mates, return_exceptions=True)
            assert values in valve.batches  # they were one batch
            for value, outcome in zip(values, outcomes, strict=True):
                if value == Valve.POISON:
                    assert isinstance(outcome, grpc.aio.AioRpcError)
                    assert outcome.code() is grpc.StatusCode.INTERNAL
                    assert outcome.details() == ("this image could not be screened: RuntimeError, see the server's log")
                else:
                    assert isinstance(outcome, pb.ScreenResponse)
                    assert outcome.request_id == str(value)
                    (expected,) = tiny_screen()(torch.from_numpy(marked(value))[None])
                    assert_same(outcome, whole(expected))

    asyncio.run(main())


class Overflowing(TinyClassifier):
    """Gives infinity for an image whose first pixel is above 0.9."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).masked_fill(images[:, 0, 0, :1] > (0.9 - 0.5) / 0.25, float("inf"))


def test_logits_that_are_not_finite_are_an_error_of_that_image() -> None:
    async def main() -> None:
        tiny, detectors, calibration = parts()
        classifier = Overflowing().eval()
        classifier.load_state_dict(tiny.state_dict())
        reader = TorchReader(classifier, detectors, GREY)
        async with running(tiny_served(Screen(reader, GREY, CLASSES, detectors, calibration))) as service:
            code, details = await status_of(service.stub.Screen(request_of(marked(0.95))))
            assert code is grpc.StatusCode.INTERNAL
            assert details == ("this image could not be screened: the classifier gave NaN or infinity for this image")
            await service.stub.Screen(request_of(marked(0.5)))

    asyncio.run(main())


def test_a_full_queue_refuses_at_once() -> None:
    async def main() -> None:
        valve = Valve()
        async with running(tiny_served(valve), config(queue_size=2, max_batch=1)) as service:
            valve.shut()
            calls = [asyncio.ensure_future(service.stub.Screen(request_of(marked(0.1))))]
            await until(valve.entered.is_set)
            calls += [asyncio.ensure_future(service.stub.Screen(request_of(marked(0.2)))) for _ in range(2)]
            await until(lambda: service.value("askance_queue_depth") == 2)
            code, details = await status_of(service.stub.Screen(request_of(marked(0.3))))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert details == "the queue is full (2 requests are waiting): try again later or elsewhere"
            valve.opened.set()
            await asyncio.gather(*calls)
            assert valve.seen == [0.1, 0.2, 0.2]
            assert service.value("askance_rejected_total", reason="queue_full") == 1
            await service.stub.Screen(request_of(marked(0.4)))  # there is room again

    asyncio.run(main())


def test_cancelled_and_expired_requests_never_reach_the_classifier() -> None:
    async def main() -> None:
        valve = Valve()
        async with running(tiny_served(valve)) as service:
            valve.shut()
            first = asyncio.ensure_future(service.stub.Screen(request_of(marked(0.1))))
            await until(valve.entered.is_set)
            cancelled = service.stub.Screen(request_of(marked(0.2)))
            kept = asyncio.ensure_future(service.stub.Screen(request_of(marked(0.3))))
            expiring = asyncio.ensure_future(status_of(service.stub.Screen(request_of(marked(0.4)), timeout=1)))
            await until(lambda: service.value("askance_queue_depth") == 3)
            cancelled.cancel()
            code, _ = await expiring
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: service.value("askance_queue_depth") == 1)
            valve.opened.set()
            await first
            await kept
            assert valve.seen == [0.1, 0.3]
            # Whose clock ends an expired call first, client's or server's, decides which of the two it counts as.
            rejected = [
                service.value("askance_rejected_total", reason=reason) or 0 for reason in ("cancelled", "expired")
            ]
            assert sum(rejected) == 2
            codes = ("CANCELLED", "DEADLINE_EXCEEDED")
            assert sum(service.value("askance_requests_total", method="Screen", code=code) or 0 for code in codes) == 2

    asyncio.run(main())


def test_a_stream_answers_in_order_and_outlives_a_bad_item() -> None:
    async def main() -> None:
        images = [noise(seed) for seed in range(20)]
        requests = [request_of(image, request_id=f"i{i}") for i, image in enumerate(images)]
        requests[7] = pb.ScreenRequest(request_id="i7", encoded=b"nonsense")
        async with running() as service:
            responses = [response async for response in service.stub.ScreenStream(iter(requests))]
            assert [response.request_id for response in responses] == [f"i{i}" for i in range(20)]
            for i, response in enumerate(responses):
                if i == 7:
                    assert response.error == pb.ItemError(
                        code=3, message="encoded: expected a PNG, JPEG or WebP image, got 8 bytes that are none"
                    )
                else:
                    assert response.response.request_id == f"i{i}"
                    assert_same(response.response, direct(images[i]))
            assert service.value("askance_requests_total", method="ScreenStream", code="OK") == 19
            assert service.value("askance_requests_total", method="ScreenStream", code="INVALID_ARGUMENT") == 1

    asyncio.run(main())


def test_a_stream_is_read_no_further_than_its_window() -> None:
    async def main() -> None:
        valve = Valve()
        async with running(tiny_served(valve), config(stream_window=3, max_batch=1)) as service:
            valve.shut()
            taken = 0

            async def requests() -> AsyncIterator[pb.ScreenRequest]:
                nonlocal taken
                for i in range(10):
                    taken += 1
                    yield request_of(marked(i / 20))

            call = service.stub.ScreenStream(requests())
            await until(valve.entered.is_set)
            await until(lambda: service.value("askance_queue_depth") == 2)
            await until(
                lambda: taken == 10
            )  # the client has sent all; the transport holds what the server does not read
            assert service.value("askance_queue_depth") == 2
            valve.opened.set()
            responses = [response async for response in call]
            assert [response.WhichOneof("outcome") for response in responses] == ["response"] * 10
            assert valve.seen == [i / 20 for i in range(10)]

    asyncio.run(main())


def test_a_cancelled_stream_leaves_nothing_behind() -> None:
    async def main() -> None:
        valve = Valve()
        async with running(tiny_served(valve), config(max_batch=1)) as service:
            valve.shut()
            call = service.stub.ScreenStream(iter([request_of(marked(0.1)) for _ in range(5)]))
            await until(valve.entered.is_set)
            await until(lambda: service.value("askance_queue_depth") == 4)
            call.cancel()
            await until(lambda: service.value("askance_queue_depth") == 0)
            valve.opened.set()
            await service.stub.Screen(request_of(marked(0.2)))
            assert valve.seen == [0.1, 0.2]

    asyncio.run(main())


def test_a_generic_client_finds_and_calls_the_service_by_reflection() -> None:
    def discover(target: str) -> tuple[list[str], dict[str, Any]]:
        with grpc.insecure_channel(target) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            services = sorted(database.get_services())
            method = DescriptorPool(database).FindServiceByName("askance.v1.Screening").methods_by_name["Screen"]
            request: Any = GetMessageClass(method.input_type)(request_id="generic")
            pixels = noise(5)
            request.tensor.shape.extend(pixels.shape)
            request.tensor.dtype = 2
            request.tensor.data = pixels.tobytes()
            call = channel.unary_unary(
                f"/{method.containing_service.full_name}/{method.name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            return services, json_format.MessageToDict(call(request, timeout=30))

    async def main() -> None:
        async with running() as service:
            services, answer = await asyncio.to_thread(discover, service.target)
            assert services == [
                "askance.v1.Screening",
                "grpc.health.v1.Health",
                "grpc.reflection.v1alpha.ServerReflection",
                "inference.GRPCInferenceService",
            ]
            expected = direct(noise(5))
            assert answer["requestId"] == "generic"
            assert answer["verdict"] == expected.verdict.value
            assert answer["prediction"]["name"] == expected.label

    asyncio.run(main())


@pytest.mark.parametrize(("allowed", "lives"), [(0.5, True), (60.0, False)])
def test_a_client_may_ping_on_an_idle_stream(allowed: float, lives: bool) -> None:
    """As often as the setting says; gRPC ends the connection at the third ping that comes too early."""
    options = [("grpc.keepalive_time_ms", 1000), ("grpc.http2.max_pings_without_data", 0)]

    async def main() -> None:
        async with (
            running(settings=config(min_ping_seconds=allowed)) as service,
            grpc.aio.insecure_channel(service.target, options=options) as channel,
        ):
            stub: Any = screening_pb2_grpc.ScreeningStub(channel)  # type: ignore[no-untyped-call]
            stream = stub.ScreenStream()
            await stream.write(request_of(noise(1)))
            await stream.read()
            ended = asyncio.ensure_future(stream.code())
            done, _ = await asyncio.wait([ended], timeout=8)
            if lives:
                assert not done
                await stream.write(request_of(noise(2)))
                assert (await stream.read()).response.prediction.name
            else:
                assert await ended is grpc.StatusCode.UNAVAILABLE
                assert await stream.details() == "Too many pings"
            stream.cancel()

    asyncio.run(main())
