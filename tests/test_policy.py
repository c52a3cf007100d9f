"""What is done with a verdict: it goes along, it blocks, or it is for the metrics alone."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import torch
from service_support import config, noise, running, status_of, tiny_screen, untypical
from toy import Whole, whole

from askance.answers import JUDGED, Verdict
from askance.service.client_messages import request_of
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.inference import inference_pb2, inference_pb2_grpc
from askance.service.protocols.inference_tensors import _elements
from askance.service.settings import Policy

IMAGES = np.stack([noise(seed) for seed in range(30)] + [untypical()])


def expected() -> list[Whole]:
    return [whole(one) for one in tiny_screen()(torch.from_numpy(IMAGES).float() / 255)]


def batch(images: np.ndarray[Any, Any], *names: str) -> inference_pb2.ModelInferRequest:
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=images.shape)
    request = inference_pb2.ModelInferRequest(model_name="tiny", inputs=[tensor], raw_input_contents=[images.tobytes()])
    for name in names:
        request.outputs.add(name=name)
    return request


def column(response: Any, name: str) -> list[str]:
    position = [output.name for output in response.outputs].index(name)
    return [str(element, "utf-8") for element in _elements(response.raw_output_contents[position], len(IMAGES))]


def test_block_gives_no_prediction_for_what_is_judged_adversarial() -> None:
    rows = expected()
    adversarial = [one.verdict is Verdict.ADVERSARIAL for one in rows]
    assert 0 < sum(adversarial) < len(rows)
    line = "this image was judged adversarial: no prediction is given for it"

    async def main() -> None:
        async with running(settings=config(policy=Policy.BLOCK)) as service:
            for image, bad in zip(IMAGES, adversarial, strict=True):
                call = service.stub.Screen(request_of(image))
                if bad:
                    assert await status_of(call) == (grpc.StatusCode.PERMISSION_DENIED, line)
                else:
                    assert (await call).verdict != pb.ADVERSARIAL
            assert service.value("askance_blocked_total") == sum(adversarial)
            assert service.value("askance_verdicts_total", verdict="ADVERSARIAL") == sum(adversarial)
            denied = {"method": "Screen", "code": "PERMISSION_DENIED"}
            assert service.value("askance_requests_total", **denied) == sum(adversarial)

            stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(service.channel)  # type: ignore[no-untyped-call]
            response = await stub.ModelInfer(batch(IMAGES))
            assert [text == line for text in column(response, "error")] == adversarial
            assert [text == "" for text in column(response, "label")] == adversarial
            assert [text == "BLOCKED" for text in column(response, "verdict")] == adversarial
            only_bad = IMAGES[[i for i, bad in enumerate(adversarial) if bad]]
            code, found = await status_of(stub.ModelInfer(batch(only_bad)))
            assert (code, found) == (grpc.StatusCode.PERMISSION_DENIED, line)

            stream = service.stub.ScreenStream(iter([request_of(image) for image in IMAGES]))
            outcomes = [answer async for answer in stream]
            assert [answer.WhichOneof("outcome") == "error" for answer in outcomes] == adversarial
            assert [answer.error.verdict == pb.BLOCKED for answer in outcomes] == adversarial

    asyncio.run(main())


def test_monitor_gives_predictions_alone_and_counts_verdicts() -> None:
    rows = expected()

    async def main() -> None:
        async with running(settings=config(policy=Policy.MONITOR)) as service:
            for image, one in zip(IMAGES, rows, strict=True):
                answer = await service.stub.Screen(request_of(image))
                assert answer.prediction.name == one.label
                assert answer.verdict == pb.VERDICT_UNSPECIFIED
                assert [answer.HasField(name) for name in ("p_value", "score")] == [False, False]
                assert len(answer.detectors) == 0
            for verdict in JUDGED:
                count = sum(one.verdict is verdict for one in rows)
                assert service.value("askance_verdicts_total", verdict=verdict.value) == count
            line = "verdicts are not given to clients here (policy monitor)"
            denied = grpc.StatusCode.PERMISSION_DENIED, line
            assert await status_of(service.stub.Screen(request_of(noise(1), explain=True))) == denied
            stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(service.channel)  # type: ignore[no-untyped-call]
            response = await stub.ModelInfer(batch(IMAGES))
            names = [output.name for output in response.outputs]
            assert names == ["label", "index", "probabilities", "logits", "error"]
            assert column(response, "label") == [one.label for one in rows]
            for name in ("verdict", "p_value", "scores", "explanation"):
                assert await status_of(stub.ModelInfer(batch(IMAGES, name))) == denied

    asyncio.run(main())
