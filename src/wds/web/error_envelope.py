"""The one shape of every refusal: `{"error": {"code", "message", "details"}}`.

Whatever a handler raises becomes an answer here, is counted, and is logged as one line
that holds neither secrets nor a sender's bytes.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec
import structlog
from aiohttp import web

from wds.domain.errors import QueueFullError, Refusal, SearchTooSlowError, StoreUnavailableError
from wds.encoding import plain
from wds.telemetry import metrics

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

log = structlog.get_logger(__name__)

MAX_DETAILS = 100
_RETRY_AFTER_S = 2
TOO_SLOW = Refusal(
    422,
    "search_too_slow",
    "finding or counting these events took too long and was ended; give a shorter range of time",
)
"""Not a 503, which clients send again by themselves: the same would take as long again."""


@web.middleware
async def envelope(  # noqa: PLR0911 - one answer for each kind of error
    request: web.Request, handler: Handler
) -> web.StreamResponse:
    """Turn every error of `handler` into an answer in the envelope."""
    try:
        return await handler(request)
    except Refusal as refusal:
        return _answer(request, refusal)
    except QueueFullError:
        busy = "too much waits to be read or stored; send again later"
        return _answer(request, Refusal(503, "overloaded", busy, retry_after_s=_RETRY_AFTER_S))
    except SearchTooSlowError:
        return _answer(request, TOO_SLOW)
    except StoreUnavailableError:
        down = "the event store did not confirm in time; send again later"
        return _answer(
            request, Refusal(503, "store_unavailable", down, retry_after_s=_RETRY_AFTER_S)
        )
    except web.HTTPRequestEntityTooLarge:
        limit = f"the body is larger than {request.client_max_size} bytes"
        return _answer(request, Refusal(413, "body_too_large", limit))
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        return _answer(request, of_http(error), allow=error.headers.get("Allow"))
    except (web.RequestPayloadError, ConnectionError):
        return _answer(request, Refusal(400, "incomplete_body", "the body did not arrive whole"))
    except Exception:
        log.exception("request_crashed", method=request.method, route=_route(request))
        return _answer(request, Refusal(500, "internal_error", "an error in wds; it is logged"))


def _answer(request: web.Request, refusal: Refusal, *, allow: str | None = None) -> web.Response:
    answer = refused(refusal, route=_route(request), remote=request.remote)
    if allow is not None:
        answer.headers["Allow"] = allow
    return answer


def note(request: web.Request, refusal: Refusal) -> None:
    """Count and log a refusal, whatever shape its answer has."""
    _note(refusal, _route(request), request.remote)


def _note(refusal: Refusal, route: str, remote: str | None) -> None:
    metrics.REFUSALS.labels(route, refusal.code).inc()
    facts = {} if refusal.event_id is None else {"event_id": refusal.event_id}
    log.info(
        "refused",
        route=route,
        http_status=refusal.status,
        code=refusal.code,
        remote=remote,
        **facts,
    )


def refused(refusal: Refusal, *, route: str, remote: str | None) -> web.Response:
    """Count and log a refusal, and return its answer."""
    _note(refusal, route, remote)
    details = [{"field": d.field, "message": d.message} for d in refusal.details[:MAX_DETAILS]]
    body = {"error": {"code": refusal.code, "message": refusal.message, "details": details}}
    headers = {}
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = str(refusal.retry_after_s)
    if refusal.status == HTTPStatus.UNAUTHORIZED and refusal.code == "operators_only":
        headers["WWW-Authenticate"] = "Bearer"
    return web.json_response(body, status=refusal.status, headers=headers)


def of_http(error: web.HTTPException) -> Refusal:
    """Return the refusal that says what an aiohttp error says."""
    status = HTTPStatus(error.status)
    code = status.phrase.lower().replace(" ", "_").replace("-", "_")
    return Refusal(error.status, code, status.description or status.phrase)


def _route(request: web.Request) -> str:
    """Return the route's pattern; the path itself is the client's text."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "none"


_ENCODER = msgspec.json.Encoder(enc_hook=plain)


def json_answer(body: object, status: int = 200) -> web.Response:
    """Answer with compact JSON."""
    return web.Response(
        body=_ENCODER.encode(body),
        status=status,
        content_type="application/json",
        charset="utf-8",
    )
