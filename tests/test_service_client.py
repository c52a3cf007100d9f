"""The client: answers, and errors in one line for people."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from service_support import encoded, noise, running

from askance.errors import AskanceError, DataError
from askance.service.client import Client, ImageLike, ServiceError, tensor_of
from askance.service.pb.askance.v1 import screening_pb2 as pb


def against_a_server(use: Callable[[Client], Any]) -> Any:
    """Run `use` on a thread of its own against a server."""

    def connected(target: str) -> Any:
        with Client(target) as client:
            return use(client)

    async def main() -> Any:
        async with running() as service:
            return await asyncio.to_thread(connected, service.target)

    return asyncio.run(main())


def test_a_file_its_content_and_its_pixels_get_the_same_answer(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encoded(Image.fromarray(noise(1)[0])))
    images: list[ImageLike] = [path, path.read_bytes(), noise(1), noise(1) / 255]
    answers = against_a_server(lambda client: [client.screen(image, request_id="x") for image in images])
    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1
    assert answers[0].request_id == "x"


def test_many_images_keep_their_order_and_their_errors() -> None:
    images: list[ImageLike] = [noise(0), b"nonsense", noise(2)]
    first, second, third = against_a_server(lambda client: list(client.screen_many(images, explain=True)))
    assert (first.request_id, third.request_id) == ("0", "2")
    assert first.detectors[0].HasField("explanation")
    assert isinstance(second, ServiceError)
    assert second.code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(second) == "encoded: expected a PNG or JPEG image, got 8 bytes that are neither"


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
            AskanceError, match=r"^encoded: expected a PNG or JPEG image, got 3 bytes that are neither$"
        ):
            client.screen(b"abc")

    against_a_server(use)


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
        (np.zeros((8, 8), np.uint8), r"pixels: expected \[channels, height, width\], got shape \[8, 8\]"),
        (np.zeros((1, 8, 8), np.int64), "pixels: expected uint8 or floating-point values, got int64"),
    ],
)
def test_an_array_that_cannot_be_sent_is_one_line(pixels: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        tensor_of(pixels)
