"""The one shape of every refusal: `{"error": {"code", "message", "details"}}`.

Every error that a handler raises becomes a response here, is counted, and is logged as one line
without secrets and without bytes of the request.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec
import structlog
from aiohttp import web

from wds.domain.errors import QueueFullError, Refusal, SearchTooSlowError, StoreUnavailableError
from wds.encoding import json_default
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
"""Not a 503, after which clients retry by themselves: the same search would take as long again."""


@web.middleware
async def envelope(  # noqa: PLR0911 - one answer for each kind of error
    request: web.Request, handler: Handler
) -> web.StreamResponse:
    """Turn every error of `handler` into a response in the envelope."""
    try:
        return await handler(request)
    except Refusal as refusal:
        return _answer(request, refusal)
    except QueueFullError:
        busy = "too many requests wait to be read or stored; send again later"
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
        return _answer(request, refusal_of_http(error), allow=error.headers.get("Allow"))
    except (web.RequestPayloadError, ConnectionError):
        return _answer(request, Refusal(400, "incomplete_body", "the body did not arrive whole"))
    except Exception:
        log.exception("request_crashed", method=request.method, route=_route(request))
        return _answer(request, Refusal(500, "internal_error", "an error in wds; it is logged"))


def _answer(request: web.Request, refusal: Refusal, *, allow: str | None = None) -> web.Response:
    answer = answer_refusal(refusal, route=_route(request), remote=request.remote)
    if allow is not None:
        answer.headers["Allow"] = allow
    return answer


def record_refusal(request: web.Request, refusal: Refusal) -> None:
    """Count and log a refusal that is answered in another shape than the envelope."""
    _record(refusal, _route(request), request.remote)


def _record(refusal: Refusal, route: str, remote: str | None) -> None:
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


def answer_refusal(refusal: Refusal, *, route: str, remote: str | None) -> web.Response:
    """Count and log a refusal; return its response in the envelope."""
    _record(refusal, route, remote)
    details = [{"field": d.field, "message": d.message} for d in refusal.details[:MAX_DETAILS]]
    body = {"error": {"code": refusal.code, "message": refusal.message, "details": details}}
    headers = {}
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = str(refusal.retry_after_s)
    if refusal.status == HTTPStatus.UNAUTHORIZED and refusal.code == "operators_only":
        headers["WWW-Authenticate"] = "Bearer"
    return web.json_response(body, status=refusal.status, headers=headers)


def refusal_of_http(error: web.HTTPException) -> Refusal:
    """Return the refusal with the status of an aiohttp error and the standard text for it."""
    status = HTTPStatus(error.status)
    code = status.phrase.lower().replace(" ", "_").replace("-", "_")
    return Refusal(error.status, code, status.description or status.phrase)


def _route(request: web.Request) -> str:
    """Return the route's pattern; the path itself is text of the client, and not logged."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "none"


_ENCODER = msgspec.json.Encoder(enc_hook=json_default)


def json_answer(body: object, status: int = 200) -> web.Response:
    """Return a response with `body` as compact JSON."""
    return web.Response(
        body=_ENCODER.encode(body),
        status=status,
        content_type="application/json",
        charset="utf-8",
    )
