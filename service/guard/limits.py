"""Limits: how much one client, and all of them together, may ask for at a time."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from urllib.parse import unquote

from askance.service.errors import too_fast, too_much

QUESTION_BYTES = 64 * 1024  # the largest message of a method that screens nothing
REMEMBERED_CLIENTS = 10_000  # the least recent are forgotten, which gives them a full allowance again


def network_of(client: str, ipv6_prefix: int) -> str:
    """What a client is limited by: a name or an IPv4 address as it is, of an IPv6 address the network.

    Whoever has an IPv6 network has all of its addresses, and a new one for every request.

    Args:
        client: as `Call.client` has it.
        ipv6_prefix: bits of an IPv6 address that are one client's.
    """
    scheme, colon, rest = client.partition(":")
    if scheme != "ipv6" or not colon:
        return client
    try:
        address = ipaddress.IPv6Address(unquote(rest).strip("[]").partition("%")[0])
    except ValueError:
        return client
    if address.ipv4_mapped is not None:
        return f"ipv4:{address.ipv4_mapped}"
    return f"ipv6:{ipaddress.IPv6Network((address, ipv6_prefix), strict=False)}"


class RateLimit:
    """A token bucket for each client: `rate` images a second, `burst` of them at once.

    Args:
        rate: images a second; 0 is no limit.
        burst: the most at once.
        clock: seconds, monotonic.
        ipv6_prefix: as for `network_of`.
    """

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic, ipv6_prefix: int = 64
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._ipv6_prefix = ipv6_prefix
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client: (allowance, when)

    def take(self, client: str, images: int) -> None:
        """Take from a client's allowance.

        Raises:
            StatusError: RESOURCE_EXHAUSTED, it is spent; nothing is taken.
        """
        if self._rate == 0:
            return
        now, client = self._clock(), network_of(client, self._ipv6_prefix)
        allowance, when = self._buckets.pop(client, (float(self._burst), now))
        allowance = min(self._burst, allowance + self._rate * (now - when))
        enough = images <= allowance
        self._buckets[client] = (allowance - images if enough else allowance, now)
        if len(self._buckets) > REMEMBERED_CLIENTS:
            self._buckets.popitem(last=False)
        if not enough:
            raise too_fast(self._rate, self._burst)


class Budget:
    """Bytes of the requests that are accepted and not yet answered.

    Args:
        most: bytes.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        """Bytes that may be in flight."""
        self.taken = 0
        """Bytes in flight."""

    def hold(self, size: int) -> AbstractContextManager[None]:
        """Hold `size` bytes while the block runs.

        Raises:
            StatusError: RESOURCE_EXHAUSTED on entry, they do not fit beside those in flight.
        """
        return _Held(self, size)


class _Held:
    """Bytes that are held while a block runs: not a generator's, for there is one in every request."""

    __slots__ = ("_budget", "_size")

    def __init__(self, budget: Budget, size: int) -> None:
        self._budget, self._size = budget, size

    def __enter__(self) -> None:
        if self._budget.taken + self._size > self._budget.most:
            raise too_much(self._budget.most)
        self._budget.taken += self._size

    def __exit__(self, *_: object) -> None:
        self._budget.taken -= self._size
