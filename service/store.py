"""Store: where replicas of a server keep what they know together; Redis, or Valkey."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redis import Redis

SCHEMES = ("redis://", "rediss://", "unix://")
ANSWER_SECONDS = 2.0  # after which a store that says nothing is away


@dataclass(frozen=True)
class Store:
    """Where it is, and what is ours in it.

    Attributes:
        url: as redis-py takes it, with no password in it.
        password: that it asks for; None where it asks for none.
        ca: a PEM file of the authority that its certificate is of; None: one that this machine trusts.
        name: what all keys of ours begin with; services that share a store have a name each.
    """

    url: str
    password: str | None
    ca: str | None
    name: str

    def key(self, what: str) -> str:
        """A key's name; all of ours are on one node of a cluster."""
        return f"{{{self.name}}}:{what}"

    def connect(self) -> Redis:
        """A connection, made once it is used; whatever is away then raises a redis.RedisError within seconds."""
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        options = {} if self.ca is None else {"ssl_ca_certs": self.ca}
        return Redis.from_url(
            self.url,
            password=self.password,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 1),  # a connection that was closed while idle
            **options,
        )
