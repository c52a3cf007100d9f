"""Errors of requests: a StatusError knows its code, in the canonical codes that every protocol maps to its own."""

from __future__ import annotations

from enum import IntEnum

from askance.answers import BLOCKED
from askance.errors import AskanceError


class Code(IntEnum):
    """The canonical status codes, with the names and numbers that gRPC gives them."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


REASONS = (
    "invalid",
    "queue_full",
    "in_flight_bytes",
    "client_rate",
    "probing",
    "unauthenticated",
    "forbidden",
    "expired",
    "cancelled",
    "loading",
    "stalled",
    "draining",
)
"""Why a request never reached the classifier."""


class StatusError(AskanceError):
    """A request that is answered with an error.

    Attributes:
        code: the status.
        reason: why it never reached the classifier, one of REASONS, or None if it did.
    """

    def __init__(self, code: Code, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[type[StatusError], tuple[Code, str, str | None]]:
        """For another process."""
        return type(self), (self.code, str(self), self.reason)


def forgetful(error: StatusError) -> StatusError:
    """The error without the way it came, and so were those that led to it.

    A traceback holds the frames, and these hold the error, as the outcome of an image, and the request: a cycle, alive
    until the garbage collector comes by.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__context__
    return error


def invalid(field: str, expected: str, got: str) -> StatusError:
    """INVALID_ARGUMENT in one line: the field of the request, what it should hold, and what came."""
    return StatusError(Code.INVALID_ARGUMENT, f"{field}: expected {expected}, got {got}", "invalid")


def queue_full(size: int) -> StatusError:
    """RESOURCE_EXHAUSTED: as many requests as the server keeps are waiting already."""
    return StatusError(
        Code.RESOURCE_EXHAUSTED,
        f"the queue is full ({size} requests are waiting): try again later or elsewhere",
        "queue_full",
    )


def too_fast(rate: float, burst: int) -> StatusError:
    """RESOURCE_EXHAUSTED: a client asks for more than its share."""
    return StatusError(
        Code.RESOURCE_EXHAUSTED,
        f"a client may send {rate:g} images a second, {burst} at once: slow down",
        "client_rate",
    )


def probes() -> StatusError:
    """PERMISSION_DENIED: what the client has asked looks like an attack, and such clients get no answer here."""
    return StatusError(
        Code.PERMISSION_DENIED, "what this client has asked looks like an attack: it gets no answer for now", "probing"
    )


def too_much(most: int) -> StatusError:
    """RESOURCE_EXHAUSTED: the requests in flight fill the memory meant for them."""
    return StatusError(
        Code.RESOURCE_EXHAUSTED,
        f"the requests in flight hold up to {most} bytes: try again later or elsewhere",
        "in_flight_bytes",
    )


def too_large(most: int, of: str = "", remedy: str = "send less at once") -> StatusError:
    """RESOURCE_EXHAUSTED: one request, or what it has of something, is larger than a message may be."""
    what = f"{most} bytes {of}".rstrip()
    return StatusError(Code.RESOURCE_EXHAUSTED, f"a request may hold {what}: {remedy}", "invalid")


def unauthenticated(expected: str) -> StatusError:
    """UNAUTHENTICATED: what a client shows of itself is nobody's; no word of what was sent."""
    return StatusError(Code.UNAUTHENTICATED, f"expected {expected}", "unauthenticated")


def forbidden(what: str, role: str, *, anonymous: bool, disclosed: bool) -> StatusError:
    """The client has not the role that something takes: UNAUTHENTICATED where it is anonymous, else PERMISSION_DENIED.

    Args:
        what: of the request takes it, such as "explain".
        role: the role.
        anonymous: whether the client might have it by showing who it is.
        disclosed: whether `--disclose` grants it.
    """
    everyone = "access.anonymous, or askance serve --disclose" if disclosed else "access.anonymous"
    show = "send a bearer token, or a certificate, of one; " if anonymous else ""
    message = (
        f"{what} takes a client with the role {role!r}: {show}the server's settings grant roles "
        f"(access.clients; for everyone {everyone})"
    )
    if anonymous:
        return StatusError(Code.UNAUTHENTICATED, message, "unauthenticated")
    return StatusError(Code.PERMISSION_DENIED, message, "forbidden")


def blocked() -> StatusError:
    """PERMISSION_DENIED: the image was judged adversarial, and such images get no prediction here."""
    return StatusError(Code.PERMISSION_DENIED, BLOCKED)


def withheld() -> StatusError:
    """PERMISSION_DENIED: the server keeps its verdicts from every client."""
    return StatusError(Code.PERMISSION_DENIED, "verdicts are not given to clients here (policy monitor)", "forbidden")


def unavailable(state: str) -> StatusError:
    """UNAVAILABLE: the server is in `state`, such as "draining"."""
    return StatusError(Code.UNAVAILABLE, f"the server is {state}: try again or another server", state)


def not_found(what: str) -> StatusError:
    """NOT_FOUND: a model, or a version of it, is not served."""
    return StatusError(Code.NOT_FOUND, what, "invalid")


def expired() -> StatusError:
    """DEADLINE_EXCEEDED: the deadline passed before the classifier saw the image."""
    return StatusError(Code.DEADLINE_EXCEEDED, "the deadline passed while the request was waiting", "expired")


def too_late(reserve: float) -> StatusError:
    """DEADLINE_EXCEEDED: the image came to the classifier too shortly before its deadline to be screened."""
    return StatusError(
        Code.DEADLINE_EXCEEDED,
        f"the deadline was nearer than {reserve:g} s when the image's turn came, too near to screen it",
        "expired",
    )


def failed(error: BaseException) -> StatusError:
    """INTERNAL: the classifier or a detector failed on this image; people's errors in full, others by type only."""
    detail = str(error) if isinstance(error, AskanceError) else f"{type(error).__name__}, see the server's log"
    return StatusError(Code.INTERNAL, f"this image could not be screened: {detail}")


def broken(error: Exception) -> StatusError:
    """INTERNAL: a call ended with an error that is not ours: a bug, told by its type only."""
    return StatusError(Code.INTERNAL, f"the server failed on this call: {type(error).__name__}, see its log")
