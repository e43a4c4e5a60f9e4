"""Who may use the operators' routes.

With `WDS_OPERATOR_TOKEN`: whoever presents it. Without: clients on this machine only, unless
`WDS_OPERATOR_OPEN` says otherwise. A request that a proxy forwarded never counts as local,
because its real client is somewhere else.
"""

from __future__ import annotations

import functools
import hmac
import ipaddress
from typing import TYPE_CHECKING

from wds.errors import Refusal

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.typedefs import Handler

    from wds.config import Settings

_FORWARDED = ("forwarded", "via", "x-real-ip")


def operators_only(handler: Handler, settings: Settings) -> Handler:
    """Return `handler` behind the rule above.

    The result raises `Refusal`: 401 without the token, 403 for a client that is not local.
    """

    @functools.wraps(handler)
    async def guarded(request: web.Request) -> web.StreamResponse:
        if settings.operator_token is not None:
            if not _presents(request, settings.operator_token):
                raise Refusal(401, "operators_only", "send Authorization: Bearer and the token")
        elif not settings.operator_open and not _is_local(request):
            raise Refusal(
                403,
                "operators_only",
                "only local clients may do this while WDS_OPERATOR_TOKEN is not set",
            )
        return await handler(request)

    return guarded


def _presents(request: web.Request, token: str) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode())
    return same and scheme.lower() == "bearer"


def _is_local(request: web.Request) -> bool:
    if any(name.lower().startswith(("x-forwarded", *_FORWARDED)) for name in request.headers):
        return False
    try:
        address = ipaddress.ip_address(request.remote or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
