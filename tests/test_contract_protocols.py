"""What every protocol keeps: the same answers, limits, roles, states, policies, counts and request ids."""

from __future__ import annotations

import asyncio
import logging
import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import grpc
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rest_support import INFER, as_json, ask
from service_support import (
    Running,
    Valve,
    config,
    marked,
    noise,
    running,
    tiny_screen,
    tiny_served,
    until,
    untypical,
)
from toy import Whole, whole

from askance.answers import BLOCKED, Answer
from askance.service.call import Role
from askance.service.client_messages import request_of
from askance.service.errors import Code
from askance.service.guard.access import ClientConfig, new_token
from askance.service.guard.admission import Kind, State
from askance.service.observability.log import Ids
from askance.service.observability.metrics import OTHER
from askance.service.pb.inference import inference_pb2 as oip
from askance.service.pb.inference import inference_pb2_grpc
from askance.service.protocols import METHODS, PROTOCOLS

HTTP = {
    200: Code.OK,
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    413: Code.RESOURCE_EXHAUSTED,
    429: Code.RESOURCE_EXHAUSTED,
    499: Code.CANCELLED,
    500: Code.INTERNAL,
    501: Code.UNIMPLEMENTED,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}
TOKEN, DIGEST = new_token()


@dataclass(frozen=True)
class Said:
    """What a client gets for one image; None is what it does not get."""

    code: Code
    message: str = ""
    request_id: str = ""
    label: str | None = None
    verdict: str | None = None
    p_value: float | None = None
    reasons: tuple[float, ...] | None = None
    probabilities: tuple[float, ...] | None = None


class Driver(ABC):
    """How a client asks by a protocol.

    Attributes:
        method: that has an image screened, as the metrics have it.
    """

    method: str

    @abstractmethod
    async def screen(self, service: Running, image: NDArray[Any], headers: dict[str, str]) -> Said:
        """Have one image screened."""


class ScreeningDriver(Driver):
    method = "Screen"

    async def screen(self, service: Running, image: NDArray[Any], headers: dict[str, str]) -> Said:
        call = service.stub.Screen(request_of(image), metadata=tuple(headers.items()))
        if (refused := await refusal(call)) is not None:
            return refused
        answer = await call
        return Said(
            Code.OK,
            "",
            await id_of(call),
            answer.prediction.name,
            type(answer).DESCRIPTOR.fields_by_name["verdict"].enum_type.values_by_number[answer.verdict].name
            if answer.verdict
            else None,
            answer.p_value if answer.HasField("p_value") else None,
            tuple(reason.p_value for reason in answer.reasons) or None,
            tuple(answer.probabilities),
        )


class InferenceDriver(Driver):
    method = "ModelInfer"

    async def screen(self, service: Running, image: NDArray[Any], headers: dict[str, str]) -> Said:
        stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(service.channel)  # type: ignore[no-untyped-call]
        datatype = {"u": "UINT8", "f": "FP32"}[image.dtype.kind]
        tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype=datatype, shape=(1, *image.shape))
        request = oip.ModelInferRequest(model_name="tiny", inputs=[tensor], raw_input_contents=[image.tobytes()])
        call = stub.ModelInfer(request, metadata=tuple(headers.items()))
        if (refused := await refusal(call)) is not None:
            return refused
        answer = await call
        found = dict(zip((one.name for one in answer.outputs), answer.raw_output_contents, strict=True))
        texts = {name: found[name][4:].decode() for name in ("label", "verdict") if name in found}
        p_value = struct.unpack("<d", found["p_value"])[0] if "p_value" in found else None
        reasons = struct.unpack("<3d", found["reasons"]) if "reasons" in found else None
        shares = tuple(np.frombuffer(found["probabilities"], "<f4").tolist())
        return Said(Code.OK, "", await id_of(call), texts.get("label"), texts.get("verdict"), p_value, reasons, shares)


class RestDriver(Driver):
    method = "RestModelInfer"

    async def screen(self, service: Running, image: NDArray[Any], headers: dict[str, str]) -> Said:
        reply = await ask(service.server.ports.others["rest"], INFER, as_json(image[None]), headers=headers)
        code, request_id = HTTP[reply.status], reply.headers["x-request-id"]
        if code is not Code.OK:
            return Said(code, reply.error, request_id)
        label, verdict, p_value = (reply.outputs.get(name, [None])[0] for name in ("label", "verdict", "p_value"))
        reasons = reply.outputs.get("reasons")
        shares = tuple(reply.outputs["probabilities"])
        return Said(code, "", request_id, label, verdict, p_value, None if reasons is None else tuple(reasons), shares)


async def refusal(call: Any) -> Said | None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        trailing: dict[str, Any] = dict(cast(Any, error.trailing_metadata()) or ())
        return Said(Code[error.code().name], error.details() or "", str(trailing.get("x-request-id", "")))
    return None


async def id_of(call: Any) -> str:
    return str(dict(await call.trailing_metadata())["x-request-id"])


DRIVERS: dict[str, Driver] = {"screening": ScreeningDriver(), "inference": InferenceDriver(), "rest": RestDriver()}


@pytest.fixture(params=PROTOCOLS)
def driver(request: pytest.FixtureRequest) -> Driver:
    """Each protocol's, by the table: one that is added without a driver fails here."""
    return DRIVERS[request.param]


def run(test: Callable[[Running], Awaitable[None]], screen: Valve | None = None, **settings: Any) -> None:
    async def main() -> None:
        async with running(tiny_served(screen), config(rest_port=0, **settings)) as service:
            await test(service)

    asyncio.run(main())


def own_word(image: NDArray[np.uint8]) -> Whole:
    """The Screen's."""
    (answer,) = tiny_screen()(torch.from_numpy(image)[None].float() / 255)
    assert isinstance(answer, Answer)
    return whole(answer)


def test_methods_have_names_and_kinds() -> None:
    assert set(DRIVERS) == set(PROTOCOLS)
    assert len(METHODS) == sum(len(one.methods) for one in PROTOCOLS.values())  # no two share a name
    for name, driver in DRIVERS.items():
        assert PROTOCOLS[name].methods[driver.method] is Kind.SCREENS


@pytest.mark.parametrize("image", [noise(1), noise(4), untypical()], ids=["clean", "another", "untypical"])
def test_the_answer_is_the_screens_own_word(driver: Driver, image: NDArray[np.uint8]) -> None:
    word = own_word(image)

    async def test(service: Running) -> None:
        said = await driver.screen(service, image, {})
        assert (said.code, said.label, said.verdict, said.p_value) == (
            Code.OK,
            word.label,
            word.verdict.value,
            word.fused.p_value,
        )
        assert said.reasons == tuple(reason.p_value for reason in word.reasons)
        assert word.reasons[0].p_value == said.p_value
        assert service.value("askance_requests_total", method=driver.method, code="OK") == 1
        assert service.value("askance_verdicts_total", verdict=word.verdict.value) == 1

    run(test)


def test_a_bad_image_is_refused_in_one_line(driver: Driver) -> None:
    image = (noise(1) / 255).astype(np.float32)
    image[0, 2, 3] = 1.5

    async def test(service: Running) -> None:
        said = await driver.screen(service, image, {})
        assert said.code is Code.INVALID_ARGUMENT
        assert said.message.partition(": ")[2].startswith("expected finite values in [0, 1], got 1.5 at [0, 2, 3]")
        assert service.value("askance_requests_total", method=driver.method, code="INVALID_ARGUMENT") == 1
        assert service.value("askance_rejected_total", reason="invalid") == 1

    run(test)


def test_what_is_not_disclosed_is_absent(driver: Driver) -> None:
    async def test(service: Running) -> None:
        said = await driver.screen(service, noise(1), {})
        assert (said.code, said.label, said.verdict) == (Code.OK, own_word(noise(1)).label, "CLEAN")
        assert (said.p_value, said.reasons) == (None, None)

    run(test, anonymous=frozenset({Role.PREDICT}))


@pytest.mark.parametrize(
    ("settings", "headers", "all_digits"),
    [
        ({"anonymous": {Role.PREDICT}}, {}, False),
        ({"anonymous": {Role.PREDICT, Role.SCORES}}, {}, False),
        ({"anonymous": {Role.PREDICT, Role.LOGITS}}, {}, True),
        ({"anonymous": {Role.PREDICT}, "anonymous_probabilities": "full"}, {}, True),
        ({"anonymous": {Role.PREDICT}}, {"authorization": f"Bearer {TOKEN}"}, True),
    ],
    ids=["a stranger", "with scores", "with logits", "where all digits are given", "a client that is known"],
)
def test_strangers_see_probabilities_to_two_digits(
    driver: Driver, settings: dict[str, Any], headers: dict[str, str], all_digits: bool
) -> None:
    client = ClientConfig(name="gateway", token_sha256=DIGEST)
    word = own_word(noise(1))
    wanted = word.probabilities if all_digits else tuple(round(one, 2) for one in word.probabilities)
    assert wanted != pytest.approx(word.probabilities, abs=1e-4) or all_digits

    async def test(service: Running) -> None:
        said = await driver.screen(service, noise(1), headers)
        assert (said.code, said.label) == (Code.OK, word.label)
        assert said.probabilities == pytest.approx(wanted, abs=1e-6)

    run(test, clients=(client,), **settings)


@pytest.mark.parametrize(
    ("headers", "roles", "code", "line"),
    [
        ({}, [Role.PREDICT], Code.UNAUTHENTICATED, "this takes a client with the role 'predict': send a bearer token"),
        ({"authorization": "Bearer nobody"}, [Role.PREDICT], Code.UNAUTHENTICATED, "expected a token that is known"),
        ({"authorization": f"Bearer {TOKEN}"}, [Role.ADMIN], Code.PERMISSION_DENIED, "this takes a client with the"),
        ({"authorization": f"Bearer {TOKEN}"}, [Role.PREDICT], Code.OK, ""),
    ],
    ids=["anonymous", "unknown", "without the role", "with it"],
)
def test_who_may_ask(driver: Driver, headers: dict[str, str], roles: list[Role], code: Code, line: str) -> None:
    client = ClientConfig(name="gateway", token_sha256=DIGEST, roles=frozenset(roles))

    async def test(service: Running) -> None:
        said = await driver.screen(service, noise(1), headers)
        assert said.code is code
        assert said.message.startswith(line)
        assert service.value("askance_requests_total", method=driver.method, code=code.name) == 1

    run(test, anonymous=frozenset(), clients=(client,))


@pytest.mark.parametrize("state", [State.LOADING, State.STALLED, State.DRAINING])
def test_a_server_that_does_not_serve_says_so(driver: Driver, state: State) -> None:
    async def test(service: Running) -> None:
        service.server.admission.state = state
        said = await driver.screen(service, noise(1), {})
        line = f"the server is {state.value}: try again or another server"
        assert (said.code, said.message) == (Code.UNAVAILABLE, line)

    run(test)


def test_a_lame_duck_answers_all_the_same(driver: Driver) -> None:
    async def test(service: Running) -> None:
        service.server.admission.leave()
        assert (await driver.screen(service, noise(1), {})).code is Code.OK

    run(test)


def test_a_full_queue_refuses(driver: Driver) -> None:
    valve = Valve()

    async def test(service: Running) -> None:
        valve.shut()
        first = asyncio.ensure_future(driver.screen(service, marked(0.25), {}))
        await until(valve.entered.is_set)
        second = asyncio.ensure_future(driver.screen(service, marked(0.5), {}))
        await until(lambda: service.value("askance_queue_depth") == 1)
        said = await driver.screen(service, marked(0.75), {})
        assert (said.code, said.message) == (
            Code.RESOURCE_EXHAUSTED,
            "the queue is full (1 requests are waiting): try again later or elsewhere",
        )
        assert said.request_id or driver.method != "RestModelInfer"
        valve.opened.set()
        assert [(await one).code for one in (first, second)] == [Code.OK, Code.OK]
        assert service.value("askance_requests_total", method=driver.method, code="RESOURCE_EXHAUSTED") == 1
        assert service.value("askance_rejected_total", reason="queue_full") == 1
        assert valve.seen == [0.25, 0.5]

    run(test, valve, queue_size=1, max_batch=1)


def test_a_message_that_is_too_large_is_refused(driver: Driver) -> None:
    async def test(service: Running) -> None:
        said = await driver.screen(service, np.zeros((1, 64, 64), np.uint8), {})
        assert said.code is Code.RESOURCE_EXHAUSTED
        assert (await driver.screen(service, noise(1), {})).code is Code.OK

    run(test, max_message_bytes=2048)


def test_the_bytes_in_flight_are_limited(driver: Driver) -> None:
    valve = Valve()

    async def test(service: Running) -> None:
        valve.shut()
        first = asyncio.ensure_future(driver.screen(service, marked(0.25), {}))
        await until(valve.entered.is_set)
        held = service.server.reception.budget.taken
        service.server.reception.budget.most = held + 1
        said = await driver.screen(service, marked(0.5), {})
        assert (said.code, said.message) == (
            Code.RESOURCE_EXHAUSTED,
            f"the requests in flight hold up to {held + 1} bytes: try again later or elsewhere",
        )
        valve.opened.set()
        assert (await first).code is Code.OK
        assert service.server.reception.budget.taken == 0

    run(test, valve)


def test_a_clients_rate_is_one_for_all_protocols(driver: Driver) -> None:
    """By the address of an anonymous client, whichever way it comes."""

    async def test(service: Running) -> None:
        for other in DRIVERS.values():
            assert (await other.screen(service, noise(1), {})).code is Code.OK
        said = await driver.screen(service, noise(1), {})
        assert (said.code, said.message) == (
            Code.RESOURCE_EXHAUSTED,
            "a client may send 0.001 images a second, 3 at once: slow down",
        )

    run(test, client_rate=0.001, client_burst=len(DRIVERS))


def test_what_is_judged_adversarial_can_be_blocked(driver: Driver) -> None:
    async def test(service: Running) -> None:
        said = await driver.screen(service, untypical(), {})
        assert said.code is Code.PERMISSION_DENIED
        assert said.message == BLOCKED
        assert service.value("askance_verdicts_total", verdict="ADVERSARIAL") == 1
        assert service.value("askance_blocked_total") == 1

    run(test, policy="block")


def test_verdicts_can_be_kept_from_clients(driver: Driver) -> None:
    async def test(service: Running) -> None:
        said = await driver.screen(service, untypical(), {})
        assert (said.code, said.label) == (Code.OK, own_word(untypical()).label)
        assert (said.verdict, said.p_value, said.reasons) == (None, None, None)
        assert service.value("askance_verdicts_total", verdict="ADVERSARIAL") == 1

    run(test, policy="monitor")


def test_an_image_that_the_classifier_fails_on_is_an_error_of_its_own(driver: Driver) -> None:
    async def test(service: Running) -> None:
        said = await driver.screen(service, marked(Valve.POISON), {})
        assert (said.code, said.message) == (
            Code.INTERNAL,
            "this image could not be screened: RuntimeError, see the server's log",
        )
        assert (await driver.screen(service, marked(0.5), {})).code is Code.OK

    run(test, Valve())


def test_a_bug_is_told_by_its_type_alone(
    driver: Driver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(service: Running) -> None:
        async def broken(*_: Any) -> Any:
            raise ZeroDivisionError("a secret")

        monkeypatch.setattr(service.server.screener, "screen", broken)
        said = await driver.screen(service, noise(1), {})
        assert (said.code, said.message) == (
            Code.INTERNAL,
            "the server failed on this call: ZeroDivisionError, see its log",
        )
        assert service.value("askance_requests_total", method=driver.method, code="INTERNAL") == 1

    run(test)
    assert "a secret" in caplog.text


def test_a_request_has_an_id(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    """The gateway's goes back and into the log, with its trace; one that is not fit for a log is replaced."""
    caplog.set_level(logging.DEBUG, "askance.service.observability.requests")
    ids, trace = Ids(), "0af7651916cd43dd8448eb211c80319c"
    caplog.handler.addFilter(ids)
    traced = {"x-request-id": "gateway/42", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}

    async def test(service: Running) -> None:
        said = await driver.screen(service, noise(1), traced)
        assert said.request_id == "gateway/42"
        said = await driver.screen(service, noise(1), {"x-request-id": "two words"})
        assert len(said.request_id) == 16
        int(said.request_id, 16)
        said = await driver.screen(service, np.full((1, 8, 8), math.nan, np.float32), {"x-request-id": "failed"})
        assert (said.code, said.request_id) == (Code.INVALID_ARGUMENT, "failed")

    run(test)
    caplog.handler.removeFilter(ids)
    (record,) = [one for one in caplog.records if "request gateway/42" in one.getMessage()]
    assert record.getMessage() == f"{driver.method} for anonymous (ipv4:127.0.0.1, request gateway/42): OK"
    assert vars(record)["trace_id"] == trace


def test_methods_that_do_not_exist_are_counted_without_their_names() -> None:
    async def test(service: Running) -> None:
        channel: Any = service.channel
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/askance.v1.Screening/Nothing")(b"")
        assert (await ask(service.server.ports.others["rest"], "/v2/nothing")).status == 404
        _, metrics = await service.get("/metrics")
        assert "othing" not in metrics
        assert service.value("askance_requests_total", method=OTHER, code="UNIMPLEMENTED") == 2

    run(test)
