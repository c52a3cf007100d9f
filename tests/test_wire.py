"""Messages are counted before they are parsed: honest ones pass, none that pass takes far more than its bytes."""

from __future__ import annotations

from contextlib import suppress

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from service_support import noise

from askance.service.client_messages import request_of
from askance.service.errors import Code, StatusError
from askance.service.guard import wire
from askance.service.guard.wire import MOST_FIELDS, MOST_TEXT_BYTES
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.inference import inference_pb2 as oip
from benchmarks.worst_messages import worst_messages

INFER = wire.request_type("inference.GRPCInferenceService", "ModelInfer")
SCREEN = wire.request_type("askance.v1.Screening", "Screen")
LARGE = 4 * MOST_FIELDS  # bytes: what is smaller is parsed uncounted, because it cannot hold too much


def refusal(content: bytes, most_images: int = 0) -> str:
    with pytest.raises(StatusError) as caught:
        wire.check(content, INFER, most_images)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"\x2a\x00" * LARGE,
            "request: expected at most 1000 fields and elements, got more: send numbers as raw bytes",
        ),
        (b"\x0a\x81\x80\x04" + b"x" * 65537, "model_name: expected at most 65536 bytes of text, got 65537"),
        (b"\xf8\x01" + b"\xff" * LARGE, f"request: expected a message of the method's type, got {LARGE + 2} bytes"),
        (b"\x0b\x0c" * LARGE, f"request: expected a message of the method's type, got {2 * LARGE} bytes"),  # a group
        (b"\x3a\xff\xff\x7f" + b"x" * LARGE, "request: expected a message of the method's type"),  # ends too early
        (b"\x2a\x02\x0a\x7f" + b"x" * LARGE, "request: expected a message of the method's type"),  # out of its frame
        (  # a long shape
            b"\x2a\x85\x80\x80\x01\x1a\x80\x80\x80\x01" + b"\1" * (1 << 21),
            "request: expected at most 1048576 bytes of whole numbers, got 2097152: send them as raw bytes",
        ),
    ],
    ids=["fields", "text", "a number without end", "groups", "no end", "out of its frame", "wide numbers"],
)
def test_what_costs_too_much_is_refused_in_one_line(content: bytes, said: str) -> None:
    assert refusal(content).startswith(said)


def test_each_image_may_have_an_element() -> None:
    files = [b"x" * 40] * 2000
    request = oip.ModelInferRequest(inputs=[{"name": "encoded", "contents": {"bytes_contents": files}}])
    wire.check(request.SerializeToString(), INFER, most_images=2000)
    assert "at most 1100 fields" in refusal(request.SerializeToString(), most_images=100)


def test_numbers_of_their_datatype_pass() -> None:
    for contents in (
        {"uint_contents": [200] * LARGE},
        {"fp32_contents": [0.5] * LARGE},
        {"bool_contents": [True] * LARGE},
    ):
        request = oip.ModelInferRequest(inputs=[{"name": "image", "contents": contents}])
        wire.check(request.SerializeToString(), INFER)


texts = st.text(max_size=30)
parameters = st.dictionaries(
    texts,
    st.one_of(
        st.builds(oip.InferParameter, string_param=texts),
        st.builds(oip.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)),
        st.builds(oip.InferParameter, double_param=st.floats()),
    ),
    max_size=5,
)
tensors = st.builds(
    oip.ModelInferRequest.InferInputTensor,
    name=texts,
    datatype=texts,
    shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    parameters=parameters,
)
honest = st.builds(
    oip.ModelInferRequest,
    model_name=texts,
    model_version=texts,
    id=texts,
    parameters=parameters,
    inputs=st.lists(tensors, max_size=3),
    outputs=st.lists(st.builds(oip.ModelInferRequest.InferRequestedOutputTensor, name=texts), max_size=12),
    raw_input_contents=st.lists(st.binary(min_size=LARGE, max_size=2 * LARGE), min_size=1, max_size=2),
)


@given(request=honest)
@settings(deadline=None, max_examples=100)
def test_honest_messages_pass(request: oip.ModelInferRequest) -> None:
    wire.check(request.SerializeToString(), INFER)


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_whatever_comes_is_refused_or_left_to_the_parser(data: st.DataObject) -> None:
    valid = request_of(noise(1)).SerializeToString() + b"\x22" + b"\x80\x80\x01" + b"z" * 16384
    content = bytearray(valid if data.draw(st.booleans()) else data.draw(st.binary(min_size=2200, max_size=3000)))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        wire.check(bytes(content), SCREEN)
    except StatusError as error:
        assert error.code is Code.INVALID_ARGUMENT
        assert "\n" not in str(error)
        return
    with suppress(DecodeError):
        pb.ScreenRequest.FromString(bytes(content))


def test_of_all_that_can_be_repeated_no_more_passes_than_is_small() -> None:
    """Whatever the methods' types hold: counted, refused by what it is, or nothing but bytes."""
    passed = []
    for worst in worst_messages(1 << 22, {}):
        service, _, method = worst.path[1:].rpartition("/")
        kind = wire.request_type(service, method)
        try:
            wire.check(worst.content, kind)
        except StatusError:
            continue
        passed.append(worst.name.partition(": ")[2])
    assert len(passed) > 5
    assert {name.rpartition(" ")[2] for name in passed} <= {"long", "packed"}
    assert not any(
        name.endswith(("shape packed", "int64_contents packed", "uint64_contents packed")) for name in passed
    )
    assert all("name" not in name and "id long" not in name for name in passed)


def test_texts_may_be_long_but_not_too_long() -> None:
    padding = oip.ModelInferRequest(raw_input_contents=[bytes(LARGE)])
    for length in (MOST_TEXT_BYTES, MOST_TEXT_BYTES + 1):
        content = oip.ModelInferRequest(id="x" * length, raw_input_contents=padding.raw_input_contents)
        if length == MOST_TEXT_BYTES:
            wire.check(content.SerializeToString(), INFER)
        else:
            assert (
                refusal(content.SerializeToString())
                == f"id: expected at most {MOST_TEXT_BYTES} bytes of text, got {length}"
            )
