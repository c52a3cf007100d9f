"""Access: who a client is, by token or certificate, and what it may do."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, model_validator

from askance.service.call import ANONYMOUS, Identity, Role
from askance.service.errors import unauthenticated

AUTHORIZATION, SCHEME = "authorization", "bearer "


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


def token_check(token_sha256: str) -> Callable[[str], bool]:
    """Whether the value of an `authorization` header shows the one token of that hash, compared in constant time."""
    expected = bytes.fromhex(token_sha256)
    return lambda header: (digest := _digest(header)) is not None and hmac.compare_digest(expected, digest)


@dataclass(frozen=True)
class Shown:
    """What a call shows of who makes it.

    Attributes:
        authorization: the values of that header.
        certificates: the names of the client's TLS certificate: its common name and its DNS names.
    """

    authorization: Sequence[str | bytes] = ()
    certificates: Sequence[str] = ()


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

    def identify(self, shown: Shown) -> Identity:
        """Who a call comes from.

        Raises:
            StatusError: UNAUTHENTICATED, it shows a token that nobody has; it is not taken for an anonymous one.
        """
        if shown.authorization:
            return self._by_token(shown.authorization)
        known = (self._certificates.get(name) for name in shown.certificates)
        return next((found for found in known if found is not None), self._anonymous)

    def _by_token(self, shown: Sequence[str | bytes]) -> Identity:
        text = shown[0].decode(errors="replace") if isinstance(shown[0], bytes) else shown[0]
        digest = _digest(text)
        if len(shown) > 1 or digest is None:
            raise unauthenticated("one header `authorization: Bearer TOKEN`")
        # every token is compared, in constant time, so that the time taken says nothing of which one it nearly was
        found = [one for token, one in self._tokens if hmac.compare_digest(token, digest)]
        if not found:
            raise unauthenticated("a token that is known here")
        return found[0]


def _digest(header: str) -> bytes | None:
    """SHA-256 of the token that an `authorization` header shows; None where it shows none."""
    if not header.lower().startswith(SCHEME):
        return None
    return hashlib.sha256(header[len(SCHEME) :].strip().encode()).digest()
