"""Call: one request and who makes it, whatever the protocol; what is noted of it goes to the log and the traces."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from askance.service.errors import forbidden

REQUEST_ID = "x-request-id"
"""The header by which a gateway names a request; it goes back with the answer."""
MESSAGE_ID_CHARACTERS = 128  # of a message's own id that are logged
VERDICT = "askance-verdict"
"""The trailing metadata that tells a client an image that is blocked from a refusal."""
ANONYMOUS = "anonymous"
_PLAIN = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)


class Role(StrEnum):
    """What a client may do; each role is granted by itself.

    Attributes:
        PREDICT: have images screened, and see the prediction and the verdict.
        LOGITS: see what the classifier gave out, too: it says more of an image than the probabilities made of it.
        SCORES: see scores and p-values, too: they are an oracle to whoever tunes an attack.
        EXPLANATIONS: see what each detector saw.
        ADMIN: have bundles loaded anew, and versions unloaded.
    """

    PREDICT = "predict"
    LOGITS = "logits"
    SCORES = "scores"
    EXPLANATIONS = "explanations"
    ADMIN = "admin"


DISCLOSING = frozenset({Role.PREDICT, Role.LOGITS, Role.SCORES, Role.EXPLANATIONS})
"""To see everything."""


@dataclass(frozen=True)
class Identity:
    """Who calls.

    Attributes:
        name: the client's, or "anonymous".
        roles: what it may do.
    """

    name: str
    roles: frozenset[Role]

    def require(self, role: Role, what: str = "this") -> None:
        """Raise StatusError unless the role is granted: UNAUTHENTICATED where anonymous, else PERMISSION_DENIED.

        Args:
            role: to be granted.
            what: of the request takes it, for the error.
        """
        if role not in self.roles:
            raise forbidden(what, role.value, anonymous=self.name == ANONYMOUS, disclosed=role in DISCLOSING)


@dataclass
class Call:
    """One request.

    Attributes:
        method: its name, as the metrics have it.
        request_id: the gateway's, or a new one.
        address: the client's, without its port; empty within the process.
        deadline: on `time.monotonic`'s clock, None if it has none.
        headers: those that a trace goes by (`traceparent`, `tracestate`).
        identity: who calls, once that is known.
        images_taken: from its client's rate, before it is known how many it has.
        transport: "grpc" or "http".
        notes: what is logged of it; of what its message holds nothing but its id.
    """

    method: str
    request_id: str
    address: str = ""
    deadline: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    identity: Identity = Identity(ANONYMOUS, frozenset())
    images_taken: int = 0
    transport: str = "grpc"
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def client(self) -> str:
        """What limits go by: the client's name, or an anonymous one's address."""
        return self.address if self.identity.name == ANONYMOUS else self.identity.name

    def received(self, message_id: str = "") -> None:
        """Take note of who calls, and of the message's own id, for the log."""
        self.notes |= {
            "client": self.identity.name,
            "address": self.address,
            "message_id": message_id[:MESSAGE_ID_CHARACTERS],
        }

    def item(self) -> Call:
        """One message of a stream: a request of its own, by the same client."""
        return replace(self, images_taken=0, notes={})


current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)
"""The call under way, for the lines of the log; set by the RequestLog and by Admission."""


def this_call() -> Call:
    """The call under way."""
    call = current_call.get()
    assert call is not None, "no call is under way: Admission sets it"
    return call


def request_id_of(given: str | bytes | None) -> str:
    """The id that a gateway gave a call (`x-request-id`), a new one where there is none or none fit for a log."""
    return given if isinstance(given, str) and _PLAIN.fullmatch(given) else secrets.token_hex(8)
