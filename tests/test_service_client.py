"""The clients: the same Answers as in process, and errors in one line for people."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from PIL import Image
from service_support import CLASSES, config, encoded, noise, running, tiny_screen, untypical
from toy import whole

from askance import Answer, AskanceError, AsyncClient, Client, Credentials, DataError, ServiceError, Verdict
from askance.answers import UNDISCLOSED, WITHHELD
from askance.errors import ConfigError
from askance.images import ImageLike
from askance.service.client_messages import tensor_of
from askance.service.config import ServerConfig
from askance.service.pb.askance.v1 import screening_pb2 as pb


def against_a_server(use: Callable[[Client], Any], settings: ServerConfig | None = None) -> Any:
    """Run `use` on a thread of its own against a server."""

    def connected(target: str) -> Any:
        with Client(target) as client:
            return use(client)

    async def main() -> Any:
        async with running(settings=settings) as service:
            return await asyncio.to_thread(connected, service.target)

    return asyncio.run(main())


def test_whatever_form_an_image_has_its_answer_is_that_of_the_screen_in_process(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encoded(Image.fromarray(noise(1)[0])))
    images: list[ImageLike] = [path, str(path), path.read_bytes(), Image.open(path)]
    webp = encoded(Image.fromarray(noise(1)[0]), "WEBP", lossless=True)
    images += [webp, Image.open(io.BytesIO(webp))]
    images += [noise(1), noise(1)[0], noise(1).transpose(1, 2, 0), noise(1) / 255, torch.from_numpy(noise(1))]
    answers = against_a_server(lambda client: [client.screen(image, request_id="x") for image in images])
    assert len(set(answers)) == 1
    (direct,) = tiny_screen()(torch.from_numpy(noise(1)[None] / 255).float())
    assert isinstance(direct, Answer)
    answer = answers[0]
    assert answer.bundle_id == "0123456789abcdef" * 4
    assert (answer.label, answer.verdict) == (direct.label, direct.verdict)
    expected, found = whole(direct), whole(answer)
    assert found.probabilities == pytest.approx(expected.probabilities)
    assert answer.p_value == pytest.approx(direct.p_value)
    assert answer.score == pytest.approx(direct.score)
    assert [word.name for word in found.detectors] == [word.name for word in expected.detectors]
    assert [word.p_value for word in found.detectors] == pytest.approx([word.p_value for word in expected.detectors])
    assert found.fused.flags == expected.fused.flags
    assert [reason.name for reason in found.reasons] == ["manipulated", "unfamiliar", "doubtful"]
    assert found.reasons == expected.reasons
    assert answer.reason is None


def test_many_images_keep_their_order_and_their_errors() -> None:
    images: list[ImageLike] = [noise(0), b"nonsense", noise(2)]
    first, second, third = against_a_server(lambda client: list(client.screen_many(images, explain=True)))
    assert isinstance(third, Answer)
    assert set(first.screening.detectors[0].explanation) == {"consistency", "layers"}
    assert isinstance(second, ServiceError)
    assert second.code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(second) == "encoded: expected a PNG, JPEG or WebP image, got 8 bytes that are none"


def test_what_is_not_disclosed_is_none_and_absent_in_json() -> None:
    (plain,) = against_a_server(lambda client: [client.screen(noise(1))], config(anonymous=frozenset({"predict"})))
    assert plain.verdict in Verdict
    assert (plain.p_value, plain.score, plain.screening, plain.reason) == (None, None, None, UNDISCLOSED)
    assert set(plain.as_dict()) == {"bundle_id", "prediction", "probabilities", "verdict", "reason"}
    (kept,) = against_a_server(lambda client: [client.screen(noise(1))], config(policy="monitor"))
    assert (kept.verdict, kept.p_value, kept.reason) == (None, None, WITHHELD)
    assert kept.label in CLASSES
    assert set(kept.as_dict()) == {"bundle_id", "prediction", "probabilities", "reason"}


def test_a_blocked_image_is_an_answer_too() -> None:
    def use(client: Client) -> list[Any]:
        return [client.screen(untypical()), *client.screen_many([noise(1), untypical()])]

    alone, clean, streamed = against_a_server(use, config(policy="block"))
    assert alone.verdict is streamed.verdict is Verdict.BLOCKED
    assert (alone.prediction, alone.label, alone.p_value) == (None, None, None)
    assert alone.reason == "this image was judged adversarial: no prediction is given for it"
    assert clean.label in CLASSES


def test_asyncio() -> None:
    async def main() -> None:
        async with running() as service, AsyncClient(service.target) as client:
            images = [noise(seed) for seed in range(8)]
            single = await asyncio.gather(*(client.screen(image) for image in images))
            streamed = [answer async for answer in client.screen_many([*images, b"nonsense"])]
            assert [one.label for one in streamed[:8] if isinstance(one, Answer)] == [one.label for one in single]
            assert isinstance(streamed[8], ServiceError)
            assert (await client.describe()).classifier == "tiny"
            with pytest.raises(ServiceError, match=r"^encoded: expected a PNG, JPEG or WebP image, got 3 bytes"):
                await client.screen(b"abc")
            with pytest.raises(DataError, match=r"none\.png cannot be read: No such file or directory"):
                [_ async for _ in client.screen_many([noise(1), "none.png"])]

    asyncio.run(main())


def test_an_image_that_cannot_be_sent_is_an_error_of_ours_in_a_stream_too(tmp_path: Path) -> None:
    images: list[Any] = [noise(0), tmp_path / "none.png"]

    def use(client: Client) -> None:
        with pytest.raises(DataError, match=r"none\.png cannot be read: No such file or directory"):
            client.screen(images[1])
        with pytest.raises(DataError, match=r"none\.png cannot be read: No such file or directory"):
            list(client.screen_many(images))

    against_a_server(use)


def test_describe() -> None:
    said = against_a_server(lambda client: client.describe())
    assert isinstance(said, pb.DescribeResponse)
    assert said.classifier == "tiny"


def test_an_unfit_image_is_the_servers_line() -> None:
    def use(client: Client) -> None:
        with pytest.raises(
            AskanceError, match=r"^encoded: expected a PNG, JPEG or WebP image, got 3 bytes that are none$"
        ):
            client.screen(b"abc")

    against_a_server(use)


@pytest.mark.parametrize("field", ["ca", "certificate", "key"])
def test_a_certificate_that_is_none_is_named(tmp_path: Path, field: str) -> None:
    (tmp_path / "good.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    (tmp_path / "bad.pem").write_bytes(b"\x30\x82")  # DER, say
    files: dict[str, Any] = dict.fromkeys(("ca", "certificate", "key"), tmp_path / "good.pem") | {
        field: tmp_path / "bad.pem"
    }
    with pytest.raises(ConfigError, match=r"bad\.pem is not PEM: expected a line that starts with -----BEGIN$"):
        Client("localhost:1", credentials=Credentials(**files))


def test_nobody_there_is_one_line() -> None:
    with (
        Client("127.0.0.1:1") as client,
        pytest.raises(ServiceError, match=r"^nothing answers at 127\.0\.0\.1:1: is `askance serve` running there\?$"),
    ):
        client.screen(b"abc")


def test_a_name_that_does_not_exist_is_one_line() -> None:
    with (
        Client("no.such.host.invalid:1") as client,
        pytest.raises(ServiceError, match=r"^nothing answers at no\.such\.host\.invalid:1: is `askance serve` running"),
    ):
        client.describe()


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        (np.zeros(8, np.uint8), r"pixels: expected \[channels, height, width\] or .*, got shape \[8\]"),
        (np.zeros((2, 8, 8), np.uint8), r"with 1 or 3 channels, got shape \[2, 8, 8\]"),
        (np.zeros((1, 8, 8), np.int64), "pixels: expected uint8 or floating-point values, got int64"),
    ],
)
def test_an_array_that_cannot_be_sent_is_one_line(pixels: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        tensor_of(pixels)
