"""Client: screens images on a server from plain Python, with errors for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
import numpy as np
from numpy.typing import NDArray

from askance.errors import AskanceError, ConfigError, DataError
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.askance.v1 import screening_pb2_grpc

ImageLike = bytes | Path | NDArray[Any]
"""A PNG or JPEG file's content or path, or pixels [C, H, W]: uint8, or floats in [0, 1]."""

_CONNECTION = ("failed to connect", "resolving", "resolution")
_MAX_REQUEST = 16 * 1024 * 1024  # bytes that gRPC keeps, to send them again
_RETRIES = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],  # the server drains, or a balancer has just lost one: ask another
}
_LOCAL = ("127.0.0.1", "::1", "localhost")
_MAX_RESPONSE = 64 * 1024 * 1024  # bytes; gRPC's own limit is 4 MiB


class ServiceError(AskanceError):
    """A server answered with an error, or none answered.

    Attributes:
        code: the gRPC status.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Credentials:
    """How a client shows who it is, and checks who answers. All files are PEM.

    Attributes:
        ca: whom to believe the server's certificate; None speaks in the clear.
        token: a bearer token; in the clear it is sent to this machine only.
        certificate, key: the client's own, for mutual TLS.
    """

    ca: Path | None = None
    token: str | None = None
    certificate: Path | None = None
    key: Path | None = None

    def channel(self, target: str, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """A channel to HOST:PORT.

        Raises:
            ConfigError: a token would go in the clear over a network, or a file cannot be read.
        """
        if self.ca is None:
            if self.token is not None and target.rpartition(":")[0].strip("[]") not in _LOCAL:
                raise ConfigError(f"a token for {target} would be sent in the clear: give the server's CA")
            return grpc.insecure_channel(target, options=options)
        root, certificate, key = (
            None if path is None else _content(path, ConfigError) for path in (self.ca, self.certificate, self.key)
        )
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(root, key, certificate), options=options)

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """What goes with each call."""
        return [] if self.token is None else [("authorization", f"Bearer {self.token}")]


class Client:
    """A connection to a server; a context manager.

    Args:
        target: HOST:PORT.
        timeout: seconds that a call may take; for a stream, the whole of it. None waits for ever.
        credentials: who we are, and whom we believe.

    Raises:
        ConfigError: the credentials cannot be used.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:8500",
        timeout: float | None = 30.0,
        credentials: Credentials = Credentials(),
    ) -> None:
        self.target = target
        self.timeout = timeout
        self._metadata = credentials.metadata
        self._channel = credentials.channel(
            target,
            [
                ("grpc.enable_http_proxy", 0),  # a proxy for the web is no way to a server named by HOST:PORT
                ("grpc.max_receive_message_length", _MAX_RESPONSE),
                ("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": _RETRIES}]})),
                ("grpc.per_rpc_retry_buffer_size", _MAX_REQUEST),
            ],
        )
        self._stub = screening_pb2_grpc.ScreeningStub(self._channel)  # type: ignore[no-untyped-call]

    def screen(self, image: ImageLike, *, explain: bool = False, request_id: str = "") -> pb.ScreenResponse:
        """Screen one image.

        Raises:
            ServiceError: nothing answers at the target, or the server refuses; one line says why.
            DataError: the image cannot be sent: no such file, or an array of another type or dimension.
        """
        request = request_of(image, explain=explain, request_id=request_id)
        try:
            response: pb.ScreenResponse = self._stub.Screen(request, timeout=self.timeout, metadata=self._metadata)
            return response
        except grpc.RpcError as error:
            self._fail(error)

    def screen_many(
        self, images: Iterable[ImageLike], *, explain: bool = False
    ) -> Iterator[pb.ScreenResponse | ServiceError]:
        """Screen images over one stream; yields, in their order, an answer or the error of each.

        Raises:
            ServiceError: the stream as a whole failed.
            DataError: an image cannot be sent.
        """
        unsendable: list[Exception] = []

        def requests() -> Iterator[pb.ScreenRequest]:
            try:
                for i, image in enumerate(images):
                    yield request_of(image, explain=explain, request_id=str(i))
            except Exception as error:  # on gRPC's thread, where nobody would see it
                unsendable.append(error)

        call = self._stub.ScreenStream(requests(), timeout=self.timeout, metadata=self._metadata)
        try:
            for response in call:
                if response.WhichOneof("outcome") == "error":
                    code = next(c for c in grpc.StatusCode if c.value[0] == response.error.code)
                    yield ServiceError(code, response.error.message)
                else:
                    yield response.response
        except grpc.RpcError as error:
            self._fail(error)
        finally:
            call.cancel()
        if unsendable:
            raise unsendable[0]

    def describe(self) -> pb.DescribeResponse:
        """Ask what is served.

        Raises:
            ServiceError: nothing answers at the target, or the server does not serve.
        """
        try:
            response: pb.DescribeResponse = self._stub.Describe(
                pb.DescribeRequest(), timeout=self.timeout, metadata=self._metadata
            )
            return response
        except grpc.RpcError as error:
            self._fail(error)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fail(self, error: grpc.RpcError) -> NoReturn:
        code, details = error.code(), error.details() or ""
        first = details.splitlines()[0] if details else code.name
        if code is grpc.StatusCode.UNAVAILABLE and any(sign in details.lower() for sign in _CONNECTION):
            message = f"nothing answers at {self.target}: is `askance serve` running there?"
        elif code is grpc.StatusCode.UNAVAILABLE and not first.startswith("the server is "):
            message = f"the connection to {self.target} was lost: {first}"
        elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
            message = f"{self.target} did not answer within {self.timeout} seconds"
        elif code is grpc.StatusCode.UNIMPLEMENTED:
            message = f"what answers at {self.target} is not an askance server ({first})"
        else:
            message = first
        raise ServiceError(code, message) from None


def readable(paths: Iterable[Path], failed: dict[int, DataError]) -> Iterator[bytes]:
    """The content of each file that can be read, when it is asked for; the others' errors go to `failed`, by position.

    One bad file then spoils nobody else's verdict.
    """
    for i, path in enumerate(paths):
        try:
            yield _content(path)
        except DataError as error:
            failed[i] = error


def _content(path: Path, failure: type[AskanceError] = DataError) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise failure(f"{path} cannot be read: {error.strerror}") from None


def token_of(path: Path) -> str:
    """The token that a file holds, white space around it left out.

    Raises:
        ConfigError: it cannot be read, or is no token.
    """
    text = _content(path, ConfigError).decode(errors="replace").strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(f"{path} holds no token: expected one word of printable characters")
    return text


def request_of(image: ImageLike, *, explain: bool = False, request_id: str = "") -> pb.ScreenRequest:
    """The request for one image.

    Raises:
        DataError: no such file, or an array of another type or dimension.
    """
    request = pb.ScreenRequest(request_id=request_id, explain=explain)
    if isinstance(image, Path):
        request.encoded = _content(image)
    elif isinstance(image, bytes):
        request.encoded = image
    else:
        request.tensor.CopyFrom(tensor_of(image))
    return request


def tensor_of(pixels: NDArray[Any]) -> pb.Tensor:
    """Pixels [C, H, W], uint8 or floats in [0, 1], as the wire has them.

    Raises:
        DataError: another type or dimension.
    """
    if pixels.ndim != 3:
        raise DataError(f"pixels: expected [channels, height, width], got shape {list(pixels.shape)}")
    if pixels.dtype == np.uint8:
        dtype, data = pb.Tensor.UINT8, pixels
    elif np.issubdtype(pixels.dtype, np.floating):
        dtype, data = pb.Tensor.FP32, pixels.astype("<f4")
    else:
        raise DataError(f"pixels: expected uint8 or floating-point values, got {pixels.dtype}")
    return pb.Tensor(shape=pixels.shape, dtype=dtype, data=data.tobytes())
