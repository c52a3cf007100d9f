"""What a client puts on the wire and takes from it: requests of image-likes, Answers, errors, credentials."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf.json_format import MessageToDict

from askance.answers import (
    BLOCKED,
    UNDISCLOSED,
    UNSCREENED,
    WITHHELD,
    Answer,
    DetectorVerdict,
    Prediction,
    Reason,
    Screening,
    Verdict,
)
from askance.errors import AskanceError, ConfigError, DataError
from askance.images import ImageLike, is_picture, planes_of
from askance.reading import given
from askance.service.call import VERDICT
from askance.service.pb.askance.v1 import screening_pb2 as pb

_CONNECTION = ("failed to connect", "resolving", "resolution")
_MAX_REQUEST_BYTES = 16 * 1024 * 1024  # that gRPC keeps, to send them again
_MAX_RESPONSE_BYTES = 64 * 1024 * 1024  # gRPC's own limit is 4 MiB
_RETRIES = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],  # the server drains, or a balancer has just lost one: ask another
}
_LOCAL = ("127.0.0.1", "::1", "localhost")
_FLAGS = {
    Verdict.CLEAN: (),
    Verdict.SUSPECT: ("suspect",),
    Verdict.ADVERSARIAL: ("suspect", "adversarial"),
}

CHANNEL_OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.enable_http_proxy", 0),  # a proxy for the web is no way to a server named by HOST:PORT
    ("grpc.max_receive_message_length", _MAX_RESPONSE_BYTES),
    ("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": _RETRIES}]})),
    ("grpc.per_rpc_retry_buffer_size", _MAX_REQUEST_BYTES),
)


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

    def channel_credentials(self, target: str) -> grpc.ChannelCredentials | None:
        """What secures a channel to HOST:PORT; None where it is in the clear.

        Raises:
            ConfigError: a token would go in the clear over a network, or a file cannot be read or is not PEM.
        """
        if self.ca is None:
            if self.token is not None and target.rpartition(":")[0].strip("[]") not in _LOCAL:
                raise ConfigError(f"a token for {target} would be sent in the clear: give the server's CA")
            return None
        root, certificate, key = (
            None if path is None else _pem(path) for path in (self.ca, self.certificate, self.key)
        )
        return grpc.ssl_channel_credentials(root, key, certificate)

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """What goes with each call."""
        return [] if self.token is None else [("authorization", f"Bearer {self.token}")]


def _pem(path: Path) -> bytes:
    """A PEM file's content; gRPC takes any other for a server that does not answer."""
    content = given(path, ConfigError)
    if b"-----BEGIN " not in content:
        raise ConfigError(f"{path} is not PEM: expected a line that starts with -----BEGIN")
    return content


def token_of(path: Path) -> str:
    """The token that a file holds, white space around it left out.

    Raises:
        ConfigError: it cannot be read, or is no token.
    """
    text = given(path, ConfigError).decode(errors="replace").strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(f"{path} holds no token: expected one word of printable characters")
    return text


def readable(paths: Iterable[Path], failed: dict[int, DataError]) -> Iterator[bytes]:
    """The content of each file that can be read, when it is asked for; the others' errors go to `failed`, by position.

    One bad file then spoils nobody else's verdict.
    """
    for i, path in enumerate(paths):
        try:
            yield given(path, DataError)
        except DataError as error:
            failed[i] = error


def request_of(image: ImageLike, *, explain: bool = False, request_id: str = "") -> pb.ScreenRequest:
    """The request for one image-like.

    Raises:
        DataError: no such file, or an array of another type or dimension.
    """
    request = pb.ScreenRequest(request_id=request_id, explain=explain)
    if isinstance(image, bytes):
        request.encoded = image
    elif isinstance(image, (str, PathLike)):
        request.encoded = given(Path(image), DataError)
    elif is_picture(image):
        request.encoded = _file(image)
    else:
        request.tensor.CopyFrom(tensor_of(image))
    return request


def _file(image: Any) -> bytes:
    """A PIL image as a file, which loses nothing; a WebP stays one: it may be grey, and only look like colour."""
    file, form = io.BytesIO(), "WEBP" if image.format == "WEBP" else "PNG"
    try:
        image.save(file, form, lossless=True)
    except OSError as error:  # a mode that PNG does not have
        raise DataError(f"this {image.mode} image cannot be sent as a {form}: {error}") from None
    return file.getvalue()


def tensor_of(pixels: Any) -> pb.Tensor:
    """One image's pixels, numpy or torch, uint8 or floats in [0, 1], as the wire has them.

    Raises:
        DataError: another type or dimension.
    """
    planes = planes_of(pixels)
    if planes.dtype == np.uint8:
        dtype, data = pb.Tensor.UINT8, planes
    else:
        dtype, data = pb.Tensor.FP32, planes.astype("<f4")
    return pb.Tensor(shape=planes.shape, dtype=dtype, data=data.tobytes())


def answer_of(response: pb.ScreenResponse) -> Answer:
    """A response as an Answer; what the server did not disclose is None."""
    sent = response.prediction
    prediction = Prediction(sent.index, sent.name, tuple(response.probabilities))
    verdict = None if response.verdict == pb.VERDICT_UNSPECIFIED else Verdict(pb.Verdict.Name(response.verdict))
    if verdict is None or not response.HasField("p_value"):
        reason = WITHHELD if verdict is None else UNSCREENED if verdict is Verdict.UNSCREENED else UNDISCLOSED
        return Answer(prediction, verdict, reason=reason, bundle_id=response.bundle_id)
    fused = DetectorVerdict("fused", response.score, response.p_value, _FLAGS[verdict])
    detectors = tuple(
        DetectorVerdict(
            word.name,
            word.score,
            word.p_value,
            tuple(word.flags),
            _explanation(word.explanation) if word.HasField("explanation") else None,
        )
        for word in response.detectors
    )
    reasons = tuple(Reason(reason.name, reason.p_value, tuple(reason.flags)) for reason in response.reasons)
    return Answer(prediction, verdict, Screening(fused, detectors, reasons), bundle_id=response.bundle_id)


def _explanation(message: pb.Explanation) -> dict[str, Any]:
    """What a detector saw, as it says so in its own process."""
    (said,) = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    ).values() or ({},)
    return dict(said)


def blocked_answer() -> Answer:
    """The answer for an image that is blocked."""
    return Answer(None, Verdict.BLOCKED, reason=BLOCKED)


def outcome_of(response: pb.ScreenStreamResponse) -> Answer | ServiceError:
    """One outcome of a stream."""
    if response.WhichOneof("outcome") != "error":
        return answer_of(response.response)
    if response.error.verdict == pb.BLOCKED:
        return blocked_answer()
    code = next(c for c in grpc.StatusCode if c.value[0] == response.error.code)
    return ServiceError(code, response.error.message)


def is_blocked(error: grpc.RpcError) -> bool:
    """Whether a call failed because its image is blocked."""
    trailing: Sequence[Any] = error.trailing_metadata() or ()  # pairs, whatever grpc-stubs says
    return (VERDICT, Verdict.BLOCKED.value) in trailing


def service_error(error: grpc.RpcError, target: str, timeout: float | None) -> ServiceError:
    """What went wrong with a call, in one line for people."""
    code, details = error.code(), error.details() or ""
    first = details.splitlines()[0] if details else code.name
    if code is grpc.StatusCode.UNAVAILABLE and any(sign in details.lower() for sign in _CONNECTION):
        message = f"nothing answers at {target}: is `askance serve` running there?"
    elif code is grpc.StatusCode.UNAVAILABLE and not first.startswith("the server is "):
        message = f"the connection to {target} was lost: {first}"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = f"{target} did not answer within {timeout} seconds"
    elif code is grpc.StatusCode.UNIMPLEMENTED:
        message = f"what answers at {target} is not an askance server ({first})"
    else:
        message = first
    return ServiceError(code, message)
