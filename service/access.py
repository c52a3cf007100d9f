"""Access: who a client is, by token or certificate, and what it may do."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, model_validator

from askance.service.status import forbidden, unauthenticated

ANONYMOUS = "anonymous"
HEADER, SCHEME = "authorization", "bearer "


class Role(StrEnum):
    """What a client may do; each role is granted by itself.

    Attributes:
        PREDICT: have images screened, and see the prediction and the verdict.
        SCORES: see scores and p-values, too: they are an oracle to whoever tunes an attack.
        EXPLANATIONS: see what each detector saw.
        ADMIN: have the bundle loaded anew.
    """

    PREDICT = "predict"
    SCORES = "scores"
    EXPLANATIONS = "explanations"
    ADMIN = "admin"


DISCLOSING = frozenset({Role.PREDICT, Role.SCORES, Role.EXPLANATIONS})
"""To see everything."""


class ClientConfig(BaseModel):
    """A known client.

    Attributes:
        name: for the log.
        token_sha256: SHA-256 of its bearer token in hexadecimal (`askance token` makes both); the token itself is kept
            nowhere.
        certificate: the common name, or a DNS name, of its TLS certificate.
        roles: what it may do.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    token_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    certificate: str | None = Field(default=None, min_length=1)
    roles: frozenset[Role] = frozenset({Role.PREDICT})

    @model_validator(mode="after")
    def _known_by_something(self) -> ClientConfig:
        if self.token_sha256 is None and self.certificate is None:
            raise ValueError("a client is known by token_sha256 or by certificate: give one")
        return self


def new_token() -> tuple[str, str]:
    """A bearer token of 256 random bits, and its SHA-256 in hexadecimal."""
    token = secrets.token_urlsafe(32)
    return token, hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True)
class Identity:
    """Who calls.

    Attributes:
        name: the client's, or "anonymous".
        roles: what it may do.
    """

    name: str
    roles: frozenset[Role]

    def require(self, role: Role) -> None:
        """Raise StatusError unless the role is granted: UNAUTHENTICATED for a stranger, else PERMISSION_DENIED."""
        if role in self.roles:
            return
        raise unauthenticated() if self.name == ANONYMOUS else forbidden(role.value)


caller: ContextVar[Identity] = ContextVar("caller")
"""Who makes the call under way; set by the Gate."""


class Access:
    """The known clients.

    Args:
        clients: by token or certificate.
        anonymous: the roles of whoever shows neither.
    """

    def __init__(self, clients: Sequence[ClientConfig], anonymous: Collection[Role]) -> None:
        self._anonymous = Identity(ANONYMOUS, frozenset(anonymous))
        identities = [(client, Identity(client.name, client.roles)) for client in clients]
        self._tokens = [(bytes.fromhex(c.token_sha256), one) for c, one in identities if c.token_sha256 is not None]
        self._certificates = {c.certificate: one for c, one in identities if c.certificate is not None}

    def identify(
        self, metadata: Iterable[tuple[str, str | bytes]], certificates: Mapping[str, Iterable[bytes]]
    ) -> Identity:
        """Who a call comes from.

        Args:
            metadata: of the call.
            certificates: gRPC's auth context; empty without mutual TLS.

        Raises:
            StatusError: UNAUTHENTICATED, it shows a token that nobody has; it is not taken for a stranger's.
        """
        shown = [value for key, value in metadata if key == HEADER]
        if shown:
            return self._by_token(shown)
        for key in ("x509_common_name", "x509_subject_alternative_name"):
            for name in certificates.get(key, ()):
                found = self._certificates.get(name.decode(errors="replace"))
                if found is not None:
                    return found
        return self._anonymous

    def _by_token(self, shown: Sequence[str | bytes]) -> Identity:
        text = shown[0].decode(errors="replace") if isinstance(shown[0], bytes) else shown[0]
        if len(shown) > 1 or not text.lower().startswith(SCHEME):
            raise unauthenticated("one header `authorization: Bearer TOKEN`")
        digest = hashlib.sha256(text[len(SCHEME) :].strip().encode()).digest()
        # every token is compared, in constant time, so that the time taken says nothing of which one it nearly was
        found = [one for token, one in self._tokens if hmac.compare_digest(token, digest)]
        if not found:
            raise unauthenticated("a token that is known here")
        return found[0]
