"""Slows down clients that present wrong operator tokens."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

BURST = 10
"""Wrong tokens that one client may present at once."""
BURST_OF_PROXY = 100
"""Wrong tokens that all clients behind one proxy may present at once."""
REFILL_S = 5.0
"""Seconds after which a client may present one more."""
MAX_CLIENTS = 10_000
"""Number of clients to remember. The one whose last failure is oldest is forgotten first."""


class FailureThrottle:
    """Counts failures by client. Each may fail `burst` times, and once more every `REFILL_S`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` counts seconds."""
        self._clock = clock
        self._full_until: OrderedDict[str, float] = OrderedDict()

    def wait_s(self, client: str, burst: int = BURST) -> float:
        """Return the seconds until `client` may try again; 0 or less: now."""
        empty_at = self._full_until.get(client, 0.0)
        return empty_at - self._clock() - (burst - 1) * REFILL_S

    def count(self, client: str) -> None:
        """Count one failure."""
        now = self._clock()
        self._full_until[client] = max(self._full_until.pop(client, now), now) + REFILL_S
        if len(self._full_until) > MAX_CLIENTS:
            self._full_until.popitem(last=False)

    def __len__(self) -> int:
        """Return how many clients are remembered."""
        return len(self._full_until)


def throttled_clients(request: web.Request) -> dict[str, int]:
    """Return the clients to which a failure of this request counts, with the burst of each.

    Behind a proxy these are two. One is the client that the proxy names last in
    `X-Forwarded-For`, so that a client that guesses does not lock out the others. The other is
    the proxy itself, because anybody can send that header with names of their own.
    """
    peer = _network(request.remote)
    forwarded = ",".join(request.headers.getall("X-Forwarded-For", []))
    if not forwarded:
        return {peer: BURST}
    last = forwarded.rpartition(",")[2].strip()
    return {f"{peer} for {_network(last)}": BURST, peer: BURST_OF_PROXY}


def _network(remote: str | None) -> str:
    """Return an IPv4 address, or the /64 of an IPv6 address, of which one client has many."""
    address = read_address(remote)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def read_address(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address in `text`, an IPv4-mapped one as IPv4; None if it is not one."""
    try:
        address = ipaddress.ip_address(text or "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
