"""Status: an error that knows its gRPC status code, so that code below the servicers need not know about calls."""

from __future__ import annotations

import grpc

from askance.errors import AskanceError


class StatusError(AskanceError):
    """A request that is answered with an error.

    Attributes:
        code: the gRPC status.
        reason: why it never reached the classifier, one of `telemetry.REASONS`, or None if it did.
    """

    def __init__(self, code: grpc.StatusCode, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


def invalid(field: str, expected: str, got: str) -> StatusError:
    """INVALID_ARGUMENT in one line: the field of the request, what it should hold, and what came."""
    return StatusError(grpc.StatusCode.INVALID_ARGUMENT, f"{field}: expected {expected}, got {got}", "invalid")


def queue_full(size: int) -> StatusError:
    """RESOURCE_EXHAUSTED: as many requests as the server keeps are waiting already."""
    return StatusError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"the queue is full ({size} requests are waiting): try again later or elsewhere",
        "queue_full",
    )


def too_fast(rate: float, burst: int) -> StatusError:
    """RESOURCE_EXHAUSTED: a client asks for more than its share."""
    return StatusError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"a client may send {rate:g} images a second, {burst} at once: slow down",
        "client_rate",
    )


def too_much(most: int) -> StatusError:
    """RESOURCE_EXHAUSTED: the requests in flight fill the memory meant for them."""
    return StatusError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"the requests in flight hold up to {most} bytes: try again later or elsewhere",
        "in_flight_bytes",
    )


def unauthenticated(expected: str = "a known client: send a bearer token, or a certificate") -> StatusError:
    """UNAUTHENTICATED: strangers may not do this, or the token is nobody's; no word of what was sent."""
    return StatusError(grpc.StatusCode.UNAUTHENTICATED, f"expected {expected}", "unauthenticated")


def forbidden(role: str) -> StatusError:
    """PERMISSION_DENIED: the client is known, and this is not for it."""
    return StatusError(grpc.StatusCode.PERMISSION_DENIED, f"this takes a client with the role {role!r}", "forbidden")


def blocked() -> StatusError:
    """PERMISSION_DENIED: the image was judged adversarial, and such images get no prediction here."""
    return StatusError(
        grpc.StatusCode.PERMISSION_DENIED, "this image was judged adversarial: no prediction is given for it"
    )


def withheld() -> StatusError:
    """PERMISSION_DENIED: the server keeps its verdicts from every client."""
    return StatusError(
        grpc.StatusCode.PERMISSION_DENIED, "verdicts are not given to clients here (policy shadow)", "forbidden"
    )


def unavailable(state: str) -> StatusError:
    """UNAVAILABLE: the server is in `state`, such as "draining"."""
    return StatusError(grpc.StatusCode.UNAVAILABLE, f"the server is {state}: try again or another server", state)


def expired() -> StatusError:
    """DEADLINE_EXCEEDED: the deadline passed before the classifier saw the image."""
    return StatusError(
        grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed while the request was waiting", "expired"
    )


def too_late(reserve: float) -> StatusError:
    """DEADLINE_EXCEEDED: the image came to the classifier too shortly before its deadline to be screened."""
    return StatusError(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        f"the deadline was nearer than {reserve:g} s when the image's turn came, too near to screen it",
        "expired",
    )


def failed(error: Exception) -> StatusError:
    """INTERNAL: the classifier or a detector failed on this image; people's errors in full, others by type only."""
    detail = str(error) if isinstance(error, AskanceError) else f"{type(error).__name__}, see the server's log"
    return StatusError(grpc.StatusCode.INTERNAL, f"this image could not be screened: {detail}")
