"""The metrics: exact counts after known requests, bounded labels, an exposition that the tools accept."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2
from prometheus_client.parser import text_string_to_metric_families
from service_support import CLASSES, CREATED, Running, noise, running, status_of, untypical

from askance.service.call import Call
from askance.service.client_messages import request_of
from askance.service.errors import invalid
from askance.service.observability.metrics import CODES, Metrics
from askance.service.observability.pooled import coarse
from askance.service.observability.requests import RequestLog
from askance.service.pb.askance.v1 import screening_pb2 as pb

NAMES = {
    "askance_requests": "counter",
    "askance_request_seconds": "histogram",
    "askance_rejected": "counter",
    "askance_blocked": "counter",
    "askance_unscreened": "counter",
    "askance_second_looks": "counter",
    "askance_candidate_info": "gauge",
    "askance_candidate_images": "counter",
    "askance_candidate_verdicts": "counter",
    "askance_candidate_predictions": "counter",
    "askance_candidate_p_value": "histogram",
    "askance_adversarial_predictions": "counter",
    "askance_verdicts": "counter",
    "askance_predictions": "counter",
    "askance_detector_flags": "counter",
    "askance_p_value": "histogram",
    "askance_reason_flags": "counter",
    "askance_reason_p_value": "histogram",
    "askance_stage_seconds": "histogram",
    "askance_batch_size": "histogram",
    "askance_queue_depth": "gauge",
    "askance_stalled": "gauge",
    "askance_last_inference_timestamp_seconds": "gauge",
    "askance_log_lines_dropped": "counter",
    "askance_bundle_info": "gauge",
    "askance_bundle_calibrated_timestamp_seconds": "gauge",
    "askance_bundle_reloads": "counter",
    "askance_fusion_images": "gauge",
    "askance_client_verdicts": "counter",
    "askance_expected_false_positive_rate": "gauge",
}
DETECTORS = ("library_network", "self_organizing_map", "fused")


async def scrape(service: Running) -> str:
    status, text = await service.get("/metrics")
    assert status == 200
    return text


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counts_are_exact() -> None:
    async def main() -> None:
        async with running() as service:
            images = [noise(seed) for seed in range(6)] + [untypical()] * 2
            answers = [await service.stub.Screen(request_of(image)) for image in images]
            await status_of(service.stub.Screen(pb.ScreenRequest()))
            await service.stub.Describe(pb.DescribeRequest())
            values = samples(await scrape(service))

            def value(name: str, **labels: str) -> float:
                return values[(name, tuple(sorted(labels.items())))]

            assert value("askance_requests_total", method="Screen", code="OK") == 8
            assert value("askance_requests_total", method="Screen", code="INVALID_ARGUMENT") == 1
            assert value("askance_requests_total", method="Describe", code="OK") == 1
            assert value("askance_requests_total", method="ScreenStream", code="OK") == 0
            assert value("askance_request_seconds_count", method="Screen") == 9
            assert value("askance_rejected_total", reason="invalid") == 1
            assert value("askance_rejected_total", reason="queue_full") == 0
            for verdict in ("CLEAN", "SUSPECT", "ADVERSARIAL"):
                given = sum(pb.Verdict.Name(answer.verdict) == verdict for answer in answers)
                assert value("askance_verdicts_total", verdict=verdict) == given
            for label in CLASSES:
                predicted = sum(answer.prediction.name == label for answer in answers)
                assert value("askance_predictions_total", label=label) == predicted
            p_values: dict[str, list[float]] = {name: [] for name in DETECTORS}
            for answer in answers:
                p_values["fused"].append(answer.p_value)
                for word in answer.detectors:
                    p_values[word.name].append(word.p_value)
            for name, ps in p_values.items():
                assert value("askance_p_value_count", detector=name) == 8
                assert value("askance_p_value_sum", detector=name) == pytest.approx(sum(map(coarse, ps)))
                assert value("askance_p_value_bucket", detector=name, le="0.05") == sum(p <= 0.05 for p in ps)
                for level, target in (("suspect", 0.05), ("adversarial", 0.01)):
                    flagged = sum(p <= target for p in ps)
                    assert value("askance_detector_flags_total", detector=name, level=level) == flagged
            assert value("askance_detector_flags_total", detector="fused", level="suspect") >= 2
            for place, name in ((1, "unfamiliar"), (2, "doubtful")):
                ps = [answer.reasons[place].p_value for answer in answers]
                assert value("askance_reason_p_value_count", reason=name) == 8
                assert value("askance_reason_p_value_sum", reason=name) == pytest.approx(sum(map(coarse, ps)))
                for level, target in (("suspect", 0.05), ("adversarial", 0.01)):
                    flagged = sum(p <= target for p in ps)
                    assert value("askance_reason_flags_total", reason=name, level=level) == flagged
            assert value("askance_reason_flags_total", reason="unfamiliar", level="suspect") >= 2
            # a reason is no detector, to whoever adds up over detectors
            assert {dict(labels).get("detector") for _, labels in values} == {None, *DETECTORS}
            of_reasons = {dict(labels)["reason"] for name, labels in values if name.startswith("askance_reason_")}
            assert of_reasons == {"unfamiliar", "doubtful"}
            for stage in ("decode", "queue", "respond", "classify", "library_network", "self_organizing_map"):
                # The refused request was decoded; the warm-up is not counted.
                count = value("askance_stage_seconds_count", stage=stage)
                assert count == 8, stage
            assert (value("askance_batch_size_count"), value("askance_batch_size_sum")) == (8, 8)
            assert value("askance_queue_depth") == 0
            assert value("askance_bundle_info", id="0123456789abcdef" * 4, classifier="tiny", engine="torch") == 1
            assert value("askance_bundle_calibrated_timestamp_seconds") == CREATED.timestamp()
            assert value("askance_bundle_reloads_total", result="success") == 0
            assert value("askance_expected_false_positive_rate", level="suspect") == 0.05
            assert value("askance_expected_false_positive_rate", level="adversarial") == 0.01

    asyncio.run(main())


def test_names_and_types_are_the_documented_ones() -> None:
    async def main() -> None:
        async with running() as service:
            families = {family.name: family.type for family in text_string_to_metric_families(await scrape(service))}
            assert {name: kind for name, kind in families.items() if not name.endswith("_created")} == NAMES

    asyncio.run(main())


def test_nothing_a_client_sends_becomes_a_label() -> None:
    async def main() -> None:
        async with running() as service:
            before = set(samples(await scrape(service)))
            for path in ("/askance.v1.Screening/Evil", "/evil.Service/Method", "/evil"):
                call: Any = service.channel.unary_unary(
                    path,
                    request_serializer=empty_pb2.Empty.SerializeToString,
                    response_deserializer=empty_pb2.Empty.FromString,
                )
                code, _ = await status_of(call(empty_pb2.Empty()))
                assert code is grpc.StatusCode.UNIMPLEMENTED
            await service.stub.Screen(request_of(noise(1), request_id="evil"), metadata=(("evil", "evil"),))
            after = samples(await scrape(service))
            assert set(after) == before
            assert after[("askance_requests_total", (("code", "UNIMPLEMENTED"), ("method", "other")))] == 3

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "left", "code"),
    [
        (None, None, "OK"),
        (invalid("x", "y", "z"), None, "INVALID_ARGUMENT"),
        (asyncio.CancelledError(), None, "CANCELLED"),
        (asyncio.CancelledError(), 60.0, "CANCELLED"),
        (asyncio.CancelledError(), -1.0, "DEADLINE_EXCEEDED"),
        (ValueError("a bug"), None, "INTERNAL"),
    ],
)
def test_a_requests_code_is_that_of_its_end(error: BaseException | None, left: float | None, code: str) -> None:
    metrics = Metrics(max_batch=1, methods=["Screen"])
    call = Call("Screen", "id", deadline=None if left is None else time.monotonic() + left)
    caught: BaseException | None = None
    try:
        with RequestLog(metrics).request(call):
            if error is not None:
                raise error
    except BaseException as raised:
        caught = raised
    assert caught is error
    for name in CODES:
        labels = {"method": "Screen", "code": name.name}
        assert metrics.registry.get_sample_value("askance_requests_total", labels) == (name.name == code)


def test_the_http_endpoint_answers_only_what_it_has() -> None:
    async def main() -> None:
        async with running() as service:
            assert await service.get("/healthz") == (200, "serving\n")
            assert await service.get("/nothing") == (404, "see /metrics, /healthz and /livez\n")

    asyncio.run(main())


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt install prometheus)"
)
def test_promtool_accepts_the_metrics() -> None:
    async def main() -> None:
        async with running() as service:
            await service.stub.Screen(request_of(noise(1)))
            text = await scrape(service)
            checked = subprocess.run(
                ["promtool", "check", "metrics"], check=False, input=text, capture_output=True, text=True
            )
            assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")

    asyncio.run(main())
