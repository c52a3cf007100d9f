"""What becomes of an image that the detectors fail on or have no time for: fail-closed, or fail-open."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from service_support import CLASSES, Valve, config, marked, running, status_of, tiny_screen, tiny_served, until
from test_policy import batch, column
from toy import whole

from askance.answers import UNSCREENED, Answer, Prediction, Verdict
from askance.errors import ScreenError
from askance.images import Batch
from askance.service.client_messages import request_of
from askance.service.errors import StatusError
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.inference import inference_pb2_grpc

FAILS = float(np.float32(Valve.POISON))
VERDICTS = ("CLEAN", "SUSPECT", "ADVERSARIAL", "UNSCREENED")
LINE = "this image could not be screened: RuntimeError, see the server's log"
IMAGES = np.stack([marked(0.1), marked(FAILS), marked(0.3)])


def predictions() -> list[Prediction]:
    """The classifier's own answers, which a Valve's detectors can fail on."""
    answers = [one for one in tiny_screen().classify(torch.from_numpy(IMAGES)) if isinstance(one, Answer)]
    for answer in answers:
        assert (answer.verdict, answer.screening, answer.reason) == (Verdict.UNSCREENED, None, UNSCREENED)
    return [answer.prediction for answer in answers if answer.prediction is not None]


def fp32(*names: str) -> Any:
    request = batch(IMAGES, *names)
    request.inputs[0].datatype = "FP32"
    return request


def test_classify_is_the_classifiers_part_of_a_screening() -> None:
    screen = tiny_screen()
    screenings = screen(torch.from_numpy(IMAGES))
    for alone, screening in zip(predictions(), map(whole, screenings), strict=True):
        assert (alone.index, alone.label) == (screening.index, screening.label)
        assert alone.probabilities == pytest.approx(screening.probabilities, abs=1e-6)


def test_fail_closed_is_an_error_of_that_image_alone() -> None:
    async def main() -> None:
        async with running(tiny_served(Valve())) as service:
            assert await status_of(service.stub.Screen(request_of(marked(FAILS)))) == (grpc.StatusCode.INTERNAL, LINE)
            stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(service.channel)  # type: ignore[no-untyped-call]
            response = await stub.ModelInfer(fp32("label", "verdict", "error"))
            assert column(response, "error") == ["", LINE, ""]
            assert column(response, "verdict")[1] == "ERROR"
            assert service.value("askance_unscreened_total", reason="failure") == 2

    asyncio.run(main())


def test_fail_open_answers_the_prediction_alone() -> None:
    expected = predictions()

    async def main() -> None:
        async with running(tiny_served(Valve()), config(fail_open=True)) as service:
            answer = await service.stub.Screen(request_of(marked(FAILS)))
            assert (answer.prediction.name, answer.verdict) == (expected[1].label, pb.UNSCREENED)
            assert [answer.HasField(name) for name in ("p_value", "score")] == [False, False]
            assert len(answer.detectors) == 0
            stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(service.channel)  # type: ignore[no-untyped-call]
            response = await stub.ModelInfer(fp32())
            assert column(response, "label") == [one.label for one in expected]
            assert column(response, "verdict")[1] == "UNSCREENED"
            assert "UNSCREENED" not in (column(response, "verdict")[0], column(response, "verdict")[2])
            assert column(response, "error") == ["", "", ""]
            names = [output.name for output in response.outputs]
            fused = np.frombuffer(response.raw_output_contents[names.index("p_value")], "<f8")
            assert [math.isnan(p) for p in fused] == [False, True, False]
            assert service.value("askance_unscreened_total", reason="failure") == 2
            assert sum(service.value("askance_verdicts_total", verdict=v) or 0 for v in VERDICTS) == 2
            assert sum(service.value("askance_predictions_total", label=x) or 0 for x in CLASSES) == 4

    asyncio.run(main())


class Broken(Valve):
    """A classifier that fails, too."""

    def classify(self, images: Batch) -> list[Answer | ScreenError]:
        if Valve.POISON in [round(float(image[0, 0, 0]), 4) for image in images]:
            raise RuntimeError("no memory")
        return super().classify(images)


def test_where_the_classifier_fails_there_is_nothing_to_open() -> None:
    async def main() -> None:
        async with running(tiny_served(Broken()), config(fail_open=True)) as service:
            assert await status_of(service.stub.Screen(request_of(marked(FAILS)))) == (grpc.StatusCode.INTERNAL, LINE)
            assert (await service.stub.Screen(request_of(marked(0.2)))).verdict != pb.UNSCREENED

    asyncio.run(main())


@pytest.mark.parametrize("fail_open", [False, True])
def test_a_near_deadline_leaves_no_time_for_the_detectors(fail_open: bool) -> None:
    valve = Valve()

    async def main() -> None:
        async with running(tiny_served(valve), config(fail_open=fail_open, reserve_seconds=3600)) as service:
            # no deadline, and one that is far, are screened
            assert (await service.stub.Screen(request_of(marked(0.1)))).verdict != pb.UNSCREENED
            far = await service.stub.Screen(request_of(marked(0.2)), timeout=7200)
            assert far.verdict != pb.UNSCREENED
            call = service.stub.Screen(request_of(marked(0.3)), timeout=60)
            if fail_open:
                answer = await call
                assert (answer.verdict, bool(answer.prediction.name)) == (pb.UNSCREENED, True)
            else:
                code, line = await status_of(call)
                assert code is grpc.StatusCode.DEADLINE_EXCEEDED
                assert line == "the deadline was nearer than 3600 s when the image's turn came, too near to screen it"
            assert 0.3 not in valve.seen
            assert service.value("askance_unscreened_total", reason="deadline") == 1

    asyncio.run(main())


def test_those_in_a_hurry_do_not_wait_for_their_batch_mates_detectors() -> None:
    valve = Valve()

    async def main() -> None:
        async with running(tiny_served(valve), config(fail_open=True, reserve_seconds=3600)) as service:
            valve.shut()
            first = asyncio.ensure_future(service.stub.Screen(request_of(marked(0.1))))
            await until(valve.entered.is_set)
            slow = asyncio.ensure_future(service.stub.Screen(request_of(marked(0.2))))
            hurried = asyncio.ensure_future(service.stub.Screen(request_of(marked(0.3)), timeout=60))
            await until(lambda: service.value("askance_queue_depth") == 2)
            valve.entered.clear()
            release = valve.opened
            release.set()
            await first
            release.clear()  # whether or not the second batch has begun
            answer = await hurried
            assert answer.verdict == pb.UNSCREENED
            release.set()
            assert (await slow).verdict != pb.UNSCREENED

    asyncio.run(main())


def test_a_batcher_says_how_near_a_deadline_was() -> None:
    from test_service_batcher import batching, screened

    async def main() -> None:
        valve = Valve()
        async with batching(valve, reserve=10.0) as batcher:
            with pytest.raises(StatusError, match="the deadline was nearer than 10 s when the image's turn came"):
                await screened(batcher, 0.2, deadline=time.monotonic() + 9)
            await screened(batcher, 0.3, deadline=time.monotonic() + 3600)
            assert valve.batches == [[0.3]]

    asyncio.run(main())
