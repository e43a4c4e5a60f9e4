"""Access to routes. Every route is guarded, except those listed as public.

With `WDS_OPERATOR_TOKEN`: clients that present it. Without: clients on this machine only, unless
`WDS_OPERATOR_OPEN` is set. A client counts as on this machine if all of these hold:

* Its address is a loopback address, and no header shows that a proxy forwarded the request.
* The `Host` that it asked for can only mean this machine. Otherwise a web page in a browser here
  could reach these routes under a name that its owner points at 127.0.0.1.
* If it is a browser, the request comes from a page of this service or from the address bar.

`WDS_OPERATOR_OPEN` trusts the clients, but not the web pages in their browsers. A page of another
service may change nothing. Its owner could also point a name at this service, so that browsers take
the page for one of this service. A request is therefore answered only if no stranger can own its
`Host`: an address, a name without a dot, which no public name server resolves, or one of the names
in `WDS_OPERATOR_HOSTS`. A
token needs no such rule: a browser sends a session's cookie only to the name that it logged in
under.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import web

from wds.domain.errors import Refusal
from wds.telemetry import metrics
from wds.web.failure_throttle import FailureThrottle, read_address, throttled_clients

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
"""The routes that anybody may use: senders sign, and health reveals nothing about events."""
METRICS = "/metrics"

_FORWARDED = ("forwarded", "via", "x-real-ip")
_READ_METHODS = {"GET", "HEAD"}
_OWN_ORIGIN = {"same-origin", "none"}
"""Values of `Sec-Fetch-Site` from a page of this service, or from the address bar."""
FOREIGN_SITES = frozenset({"cross-site", "same-site"})
"""Values of `Sec-Fetch-Site` on a browser's request from a page of another service."""


class Guard:
    """Admits or refuses requests to the routes that are not public."""

    def __init__(
        self,
        settings: Settings,
        *,
        public: frozenset[str] = PUBLIC,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`public` are route patterns; `clock` counts seconds."""
        self._token = settings.operator_token
        self._open = settings.operator_open
        self._hosts = frozenset(map(_host_name, settings.operator_hosts))
        self._public = public | {METRICS} if settings.metrics_open else public
        self._failures = FailureThrottle(clock)
        self._may_read: Callable[[web.Request], Awaitable[bool]] = _nobody

    def exempt(self, patterns: AbstractSet[str]) -> None:
        """Leave the routes with these patterns to another guard."""
        self._public |= patterns

    def admit_readers(self, may_read: Callable[[web.Request], Awaitable[bool]]) -> None:
        """Let a client for which `may_read` returns True read every route."""
        self._may_read = may_read

    @property
    def middleware(self) -> Middleware:
        """Return the middleware that calls `check` for every route that is not public."""

        @web.middleware
        async def guarded_route(request: web.Request, handler: Handler) -> web.StreamResponse:
            resource = request.match_info.route.resource
            # Without a resource the answer is 404 or 405, which reveals nothing.
            guarded = resource is not None and resource.canonical not in self._public
            reads = request.method in _READ_METHODS
            if guarded and not (reads and await self._may_read(request)):
                self.check(request)
            return await handler(request)

        return guarded_route

    def check(self, request: web.Request) -> None:
        """Return if the client may use operators' routes.

        Raises:
            Refusal: 401 without the right token, 429 after too many wrong ones, 403 for a client
                that is not on this machine or asks for a `Host` that a stranger may own.
        """
        if self._token is not None:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                raise counted_refusal(
                    401,
                    "no_token",
                    "send the value of WDS_OPERATOR_TOKEN as Authorization: Bearer",
                )
            self.check_token(request, token.strip())
        elif not self._open:
            _check_local(request)
        else:
            self._check_open(request)

    def _check_open(self, request: web.Request) -> None:
        hosts = [request.host, *request.headers.getall("X-Forwarded-Host", [])]
        if not all(self._is_own(host.strip()) for each in hosts for host in each.split(",")):
            raise counted_refusal(
                403,
                "foreign_host",
                "a page of another site may have sent this; ask for the address of the service, or"
                " list the name that you ask for in WDS_OPERATOR_HOSTS",
            )
        if request.method not in _READ_METHODS and not from_own_page(request):
            raise _cross_site()

    def _is_own(self, host: str) -> bool:
        """Tell whether no stranger can have pointed the name `host` at this service."""
        name = _host_name(host)
        if not name:
            return False
        return "." not in name or name in self._hosts or read_address(name) is not None

    def check_token(self, request: web.Request, token: str) -> None:
        """Return if `token` is right. After too many failures of a client it is not compared.

        Raises:
            Refusal: 401 if it is not, 429 if this client must wait.
        """
        clients = throttled_clients(request)
        wait_s = max(self._failures.wait_s(*client) for client in clients.items())
        if wait_s > 0:
            raise counted_refusal(
                429,
                "too_many_failures",
                "too many wrong tokens came from this address; wait, then try again",
                code="too_many_failures",
                retry_after_s=math.ceil(wait_s),
            )
        if self._token is None or not _equal(token, self._token):
            for client in clients:
                self._failures.count(client)
            raise counted_refusal(401, "wrong_token", "this is not the value of WDS_OPERATOR_TOKEN")


async def _nobody(_: web.Request) -> bool:
    return False


def _equal(token: str, expected: str) -> bool:
    """Compare in a time that depends neither on where they differ nor on their lengths."""
    key = secrets.token_bytes(16)
    digests = [
        hmac.digest(key, text.encode("utf-8", "surrogateescape"), hashlib.sha256)
        for text in (token, expected)
    ]
    return hmac.compare_digest(*digests)


def _check_local(request: web.Request) -> None:
    address = read_address(request.remote)
    forwarded = any(
        name.lower().startswith(("x-forwarded", *_FORWARDED)) for name in request.headers
    )
    if address is None or not address.is_loopback or forwarded:
        raise counted_refusal(
            403,
            "not_local",
            "only clients on this machine may do this; for others set WDS_OPERATOR_TOKEN on the"
            " service and send it as Authorization: Bearer, or set WDS_OPERATOR_OPEN=true",
        )
    if not _names_this_machine(request.host) or _is_cross_site(request):
        raise _cross_site()


def _cross_site() -> Refusal:
    return counted_refusal(
        403,
        "cross_site",
        "a page of another site may have sent this; ask for 127.0.0.1 or localhost,"
        " or set WDS_OPERATOR_TOKEN on the service and send it as Authorization: Bearer",
    )


def from_own_page(request: web.Request) -> bool:
    """Tell whether a page of this service sent the request, by a browser's headers.

    Without `Sec-Fetch-Site` and `Origin` it is True: the client is not a browser, or too old to
    send either.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in FOREIGN_SITES
    origin = request.headers.get("Origin")
    if origin is None:
        return True
    try:
        host = urlsplit(origin).netloc
    except ValueError:
        return False
    return host in {request.host, request.headers.get("X-Forwarded-Host")}


def _host_name(host: str) -> str:
    """Return the name or address in a `Host` header, in lower case; '' without one."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _names_this_machine(host: str) -> bool:
    name = _host_name(host)
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761
        return True
    address = read_address(name)
    return address is not None and address.is_loopback


def _is_cross_site(request: web.Request) -> bool:
    origin = request.headers.get("Origin")
    if origin is not None and origin != f"{request.scheme}://{request.host}":
        return True
    return request.headers.get("Sec-Fetch-Site", "none") not in _OWN_ORIGIN


def counted_refusal(
    status: int,
    reason: str,
    message: str,
    *,
    code: str = "operators_only",
    retry_after_s: int | None = None,
) -> Refusal:
    """Count the refusal of an operator's request by `reason`; return it for the caller to raise."""
    metrics.OPERATOR_REFUSALS.labels(reason).inc()
    return Refusal(status, code, message, retry_after_s=retry_after_s)
