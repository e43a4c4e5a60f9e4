"""Who may use which route. Every route is guarded, but those that are named here as public.

With `WDS_OPERATOR_TOKEN`: whoever presents it. Without: clients on this machine only, unless
`WDS_OPERATOR_OPEN` says otherwise. Who counts as a client on this machine:

* Its address is a loopback address, and no proxy says that it forwards for somebody else.
* It asked for this machine by a name that cannot mean another one. Otherwise any page in a
  browser here could reach these routes under a name that it points at 127.0.0.1.
* If it is a browser, the request comes from a page of this very service, or from the address bar.

`WDS_OPERATOR_OPEN` trusts the clients, not the pages in their browsers: none of another service
may change anything, and none may point a name of its own at this service to be one of its pages.
So only such names are answered as no stranger can own: an address, a name without a dot, which no
public name server gives out, and what `WDS_OPERATOR_HOSTS` lists. A token needs no such rule: a
browser sends a session's cookie to no other name than the one it logged in under.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import secrets
import time
from collections import OrderedDict
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import web

from wds.domain.errors import Refusal
from wds.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Set as AbstractSet

    from aiohttp.typedefs import Handler, Middleware

    from wds.config import Settings

PUBLIC = frozenset(
    {
        "/webhooks/ingest",
        "/webhooks/ingest/batch",
        "/webhooks/ingest/{source}",
        "/healthz",
        "/readyz",
    }
)
"""The routes that anybody may use: senders sign, and health says nothing of events."""
METRICS = "/metrics"

_FORWARDED = ("forwarded", "via", "x-real-ip")
_READING = {"GET", "HEAD"}
_SAME_SITE = {"same-origin", "none"}
FOREIGN = frozenset({"cross-site", "same-site"})
"""What a browser puts into `Sec-Fetch-Site` of a request from a page of another service."""

BURST = 10
"""Wrong tokens that one client may present at once."""
BURST_OF_PROXY = 100
"""And all clients together for whom one address says that it forwards."""
REFILL_S = 5.0
"""Seconds after which it may present one more."""
MOST_CLIENTS = 10_000
"""Clients remembered; those not heard of for longest are forgotten first."""


class Guard:
    """Decides over requests to the routes that are not public."""

    def __init__(
        self,
        settings: Settings,
        *,
        public: frozenset[str] = PUBLIC,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the rules. `public` are route patterns; `clock` counts seconds."""
        self._token = settings.operator_token
        self._open = settings.operator_open
        self._hosts = frozenset(map(_name, settings.operator_hosts))
        self._public = public | {METRICS} if settings.metrics_open else public
        self._failures = Throttle(clock)
        self._readers: Callable[[web.Request], Awaitable[bool]] = _nobody

    def share(
        self, paths: AbstractSet[str], knows: Callable[[web.Request], Awaitable[bool]]
    ) -> None:
        """Leave the routes `paths` to whoever guards them, and let whom they know read the rest."""
        self._public |= paths
        self._readers = knows

    @property
    def middleware(self) -> Middleware:
        """Return the middleware that asks `check` before any route that is not public."""

        @web.middleware
        async def asked(request: web.Request, handler: Handler) -> web.StreamResponse:
            resource = request.match_info.route.resource
            # Without a resource the answer is 404 or 405, and tells nothing.
            guarded = resource is not None and resource.canonical not in self._public
            reads = request.method in _READING
            if guarded and not (reads and await self._readers(request)):
                self.check(request)
            return await handler(request)

        return asked

    def check(self, request: web.Request) -> None:
        """Return if the client may use operators' routes.

        Raises:
            Refusal: 401 without the right token, 429 after too many wrong ones, 403 for a client
                that is not on this machine, or asks by a name that may be a stranger's.
        """
        if self._token is not None:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                raise counted(
                    401,
                    "no_token",
                    "send the value of WDS_OPERATOR_TOKEN as Authorization: Bearer",
                )
            self.check_token(request, given.strip())
        elif not self._open:
            _check_local(request)
        else:
            self._check_open(request)

    def _check_open(self, request: web.Request) -> None:
        named = [request.host, *request.headers.getall("X-Forwarded-Host", [])]
        if not all(self._is_ours(host.strip()) for each in named for host in each.split(",")):
            raise counted(
                403,
                "foreign_host",
                "this may have come from a foreign page in a browser; ask for the address of the"
                " service, or list the name that you ask for in WDS_OPERATOR_HOSTS",
            )
        if request.method not in _READING and not from_here(request):
            raise _cross_site()

    def _is_ours(self, host: str) -> bool:
        """Tell whether no stranger can have pointed this name at the service."""
        name = _name(host)
        if not name:
            return False
        return "." not in name or name in self._hosts or _address(name) is not None

    def check_token(self, request: web.Request, given: str) -> None:
        """Return if `given` is the token. Past some failures of one client it is not looked at.

        Raises:
            Refusal: 401 if it is not, 429 if this client must wait.
        """
        clients = _clients(request)
        wait_s = max(self._failures.wait_s(*client) for client in clients.items())
        if wait_s > 0:
            raise counted(
                429,
                "too_many_failures",
                "too many wrong tokens came from this address; wait, then try again",
                code="too_many_failures",
                retry_after_s=math.ceil(wait_s),
            )
        if self._token is None or not _same(given, self._token):
            for client in clients:
                self._failures.count(client)
            raise counted(401, "wrong_token", "this is not the value of WDS_OPERATOR_TOKEN")


class Throttle:
    """Counts failures by client, and tells who has to wait. Memory is bounded.

    Each client has room for some failures, and gets room for one more every `REFILL_S`.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Take a clock, in seconds."""
        self._clock = clock
        self._full_until: OrderedDict[str, float] = OrderedDict()

    def wait_s(self, client: str, burst: int = BURST) -> float:
        """Return the seconds until a client with room for `burst` may try again; 0 or less: now."""
        over_at = self._full_until.get(client, 0.0)
        return over_at - self._clock() - (burst - 1) * REFILL_S

    def count(self, client: str) -> None:
        """Count one failure."""
        now = self._clock()
        self._full_until[client] = max(self._full_until.pop(client, now), now) + REFILL_S
        if len(self._full_until) > MOST_CLIENTS:
            self._full_until.popitem(last=False)

    def __len__(self) -> int:
        """Return how many clients are remembered."""
        return len(self._full_until)


async def _nobody(_: web.Request) -> bool:
    return False


def _same(given: str, token: str) -> bool:
    """Compare in a time that depends on neither where nor in what length they differ."""
    key = secrets.token_bytes(16)
    digests = [
        hmac.digest(key, text.encode("utf-8", "surrogateescape"), hashlib.sha256)
        for text in (given, token)
    ]
    return hmac.compare_digest(*digests)


def _clients(request: web.Request) -> dict[str, int]:
    """Return by whom failures of this request are counted, and for how many each has room.

    Behind a proxy by the client that it names last in `X-Forwarded-For`, so that one who guesses
    does not lock out the others; and by its own address, for whoever sends that header may make
    names up.
    """
    peer = _client(request.remote)
    named = ",".join(request.headers.getall("X-Forwarded-For", []))
    if not named:
        return {peer: BURST}
    last = named.rpartition(",")[2].strip()
    return {f"{peer} for {_client(last)}": BURST, peer: BURST_OF_PROXY}


def _client(remote: str | None) -> str:
    """Return what failures are counted by: an IPv4 address, or the network of an IPv6 one."""
    address = _address(remote)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _address(remote: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(remote or "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _check_local(request: web.Request) -> None:
    address = _address(request.remote)
    forwarded = any(
        name.lower().startswith(("x-forwarded", *_FORWARDED)) for name in request.headers
    )
    if address is None or not address.is_loopback or forwarded:
        raise counted(
            403,
            "not_local",
            "only clients on this machine may do this; for others set WDS_OPERATOR_TOKEN on the"
            " service and send it as Authorization: Bearer, or set WDS_OPERATOR_OPEN=true",
        )
    if not _names_this_machine(request.host) or _is_cross_site(request):
        raise _cross_site()


def _cross_site() -> Refusal:
    return counted(
        403,
        "cross_site",
        "this may have come from a foreign page in a browser; ask for 127.0.0.1 or localhost,"
        " or set WDS_OPERATOR_TOKEN on the service and send it as Authorization: Bearer",
    )


def from_here(request: web.Request) -> bool:
    """Tell whether a browser says that a page of this service sent the request.

    Without either header it is no browser, or one too old to be asked.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in FOREIGN
    origin = request.headers.get("Origin")
    if origin is None:
        return True
    try:
        host = urlsplit(origin).netloc
    except ValueError:
        return False
    return host in {request.host, request.headers.get("X-Forwarded-Host")}


def _name(host: str) -> str:
    """Return the name or address in a `Host`, in lower case; empty if there is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _names_this_machine(host: str) -> bool:
    name = _name(host)
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761
        return True
    address = _address(name)
    return address is not None and address.is_loopback


def _is_cross_site(request: web.Request) -> bool:
    origin = request.headers.get("Origin")
    if origin is not None and origin != f"{request.scheme}://{request.host}":
        return True
    return request.headers.get("Sec-Fetch-Site", "none") not in _SAME_SITE


def counted(
    status: int,
    reason: str,
    message: str,
    *,
    code: str = "operators_only",
    retry_after_s: int | None = None,
) -> Refusal:
    """Return a refusal of a client that may not do this, counted by its reason."""
    metrics.OPERATOR_REFUSALS.labels(reason).inc()
    return Refusal(status, code, message, retry_after_s=retry_after_s)
