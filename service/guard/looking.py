"""Looking: who may look at the live page: clients with the role admin, or, where none are known, this machine alone."""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from askance.service.call import Role
from askance.service.errors import StatusError
from askance.service.guard.access import Access, Shown

CHALLENGE = (
    "WWW-Authenticate",
    'Basic realm="askance: any name, and as password the token of a client with the role admin"',
)
"""What makes browsers ask for a token."""
NOBODY = "this machine"
"""The name of whoever looks where no clients are known."""


class RefusedError(Exception):
    """Not for this one.

    Args:
        status: of HTTP.
        message: one line for people.
        headers: more of these.
    """

    def __init__(self, status: str, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class Looker:
    """Decides who looks. What the page shows is an oracle to whoever tunes an attack.

    Args:
        access: knows the clients.
        has_admins: whether one of these has the role admin, or anonymous ones have.
        host: where the page is served.
        guarded: whether clients are known, or the metrics take a token: then nobody looks who is not an admin.
    """

    def __init__(self, access: Access, host: str, *, has_admins: bool, guarded: bool) -> None:
        self._access, self._has_admins, self._guarded = access, has_admins, guarded
        self._here = _is_loopback(host)

    def admit(self, environ: Mapping[str, Any]) -> str:
        """The name of who looks.

        Args:
            environ: of a WSGI request.

        Raises:
            RefusedError: not for this one.
        """
        if not self._has_admins:
            if self._guarded or not self._here:
                raise RefusedError(
                    "403 Forbidden",
                    "the live page takes a client with the role admin, and the settings name none (docs/security.md)",
                )
            # a page of somebody else's whose name leads here must not read this one (DNS rebinding)
            if not _is_loopback(_host_of(environ.get("HTTP_HOST", ""))):
                raise RefusedError(
                    "403 Forbidden", "ask for it as localhost; under other names it takes a client with the role admin"
                )
            return NOBODY
        try:
            identity = self._access.identify(Shown(_bearer(environ.get("HTTP_AUTHORIZATION", ""))))
            identity.require(Role.ADMIN)
        except StatusError as error:
            raise RefusedError("401 Unauthorized", str(error), [CHALLENGE]) from None
        return identity.name

    @staticmethod
    def is_own(environ: Mapping[str, Any]) -> bool:
        """Whether a request that changes something comes from a page of this server's, and not from somebody else's in
        the same browser, which sends the password along: other sites cannot send JSON unless they are let.
        """
        site = environ.get("HTTP_SEC_FETCH_SITE", "same-origin")
        return site in ("same-origin", "none") and environ.get("CONTENT_TYPE", "").startswith("application/json")


def _bearer(header: str) -> list[str]:
    """The `authorization` that a header shows, a password as a token; nothing where there is none."""
    scheme, _, rest = header.partition(" ")
    if scheme.lower() != "basic":
        return [header] if header else []
    try:
        _, _, token = base64.b64decode(rest, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        token = ""
    return [f"Bearer {token}"]


def _host_of(header: str) -> str:
    """The host of `host:port`; an IPv6 address without its brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if ":" in header else header


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
