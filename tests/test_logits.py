"""The output `logits`: what the classifier gave out, for whom it is granted, over both carriers of the protocol."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from inference_support import IMAGES, answers
from numpy.typing import NDArray
from rest_support import INFER, as_json, ask
from service_support import CLASSES, Running, config, running, tiny_screen, tiny_served, untypical

from askance.answers import Prediction
from askance.service.call import Role
from askance.service.pb.inference import inference_pb2 as pb
from askance.service.pb.inference import inference_pb2_grpc

PREDICT, BOTH = frozenset({Role.PREDICT}), frozenset({Role.PREDICT, Role.LOGITS})


def own_logits(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    screen = tiny_screen()
    found: NDArray[np.float32] = screen.reader.classify(images.astype(np.float32) / np.float32(255))
    return found


async def infer(service: Running, images: NDArray[np.uint8] = IMAGES, *outputs: str, top: int = 0) -> Any:
    stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(service.channel)  # type: ignore[no-untyped-call]
    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=images.shape)
    request = pb.ModelInferRequest(model_name="tiny", inputs=[tensor], raw_input_contents=[images.tobytes()])
    for name in outputs:
        asked = request.outputs.add(name=name)
        if top:
            asked.parameters["classification"].int64_param = top
    response = await stub.ModelInfer(request)
    return dict(zip((one.name for one in response.outputs), response.raw_output_contents, strict=True))


def test_logits_are_the_classifiers_own_and_probabilities_their_softmax() -> None:
    for answer, row in zip(answers(), own_logits(IMAGES), strict=True):
        assert answer.prediction is not None
        assert answer.prediction.logits == pytest.approx(row, rel=1e-5)
        softmax = torch.tensor(answer.prediction.logits).softmax(dim=0)
        assert answer.prediction.probabilities == pytest.approx(softmax.tolist(), rel=1e-5)
        assert "logits" not in repr(answer)
        assert "logits" not in answer.as_dict()
        plain = Prediction(answer.prediction.index, answer.prediction.label, answer.prediction.probabilities)
        assert plain == answer.prediction


def test_logits_are_for_whom_they_are_granted() -> None:
    async def main() -> None:
        async with running(tiny_served(), config(rest_port=0, anonymous=PREDICT)) as service:
            assert "logits" not in await infer(service)
            with pytest.raises(grpc.aio.AioRpcError, match="the output logits takes a client with the role 'logits'"):
                await infer(service, IMAGES, "logits")
            port = service.server.ports.others["rest"]
            assert "logits" not in (await ask(port, INFER, as_json(IMAGES))).outputs
            reply = await ask(port, INFER, as_json(IMAGES, outputs=[{"name": "logits"}]))
            assert reply.status == 401
            assert reply.error.startswith("the output logits takes a client with the role 'logits'")
        async with running(tiny_served(), config(rest_port=0, anonymous=BOTH)) as service:
            for found in (await infer(service), await infer(service, IMAGES, "logits")):
                got = np.frombuffer(found["logits"], "<f4").reshape(len(IMAGES), len(CLASSES))
                np.testing.assert_allclose(got, own_logits(IMAGES), rtol=1e-4, atol=1e-5)
            reply = await ask(service.server.ports.others["rest"], INFER, as_json(IMAGES))
            assert reply.outputs["logits"] == pytest.approx(own_logits(IMAGES).flatten(), rel=1e-4, abs=1e-5)

    asyncio.run(main())


def test_scores_do_not_bring_logits_with_them() -> None:
    async def main() -> None:
        roles = frozenset({Role.PREDICT, Role.SCORES, Role.EXPLANATIONS})
        async with running(tiny_served(), config(anonymous=roles)) as service:
            assert "logits" not in await infer(service)

    asyncio.run(main())


def test_a_blocked_image_has_no_logits() -> None:
    async def main() -> None:
        async with running(tiny_served(), config(policy="block", anonymous=BOTH)) as service:
            found = await infer(service, np.stack([IMAGES[0], untypical()]))
            rows = np.frombuffer(found["logits"], "<f4").reshape(2, len(CLASSES))
            assert np.isfinite(rows[0]).all()
            assert np.isnan(rows[1]).all()

    asyncio.run(main())


def test_their_greatest_come_as_text() -> None:
    async def main() -> None:
        async with running(tiny_served(), config(anonymous=BOTH)) as service:
            found = await infer(service, IMAGES[:1], "logits", top=1)
            best = int(own_logits(IMAGES[:1])[0].argmax())
            text = found["logits"][4:].decode()
            assert text.split(":")[1:] == [str(best), CLASSES[best]]
            assert float(text.split(":")[0]) == pytest.approx(float(own_logits(IMAGES[:1])[0].max()), rel=1e-3)

    asyncio.run(main())
