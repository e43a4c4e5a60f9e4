"""Rendering pages, turning errors into pages, and the headers of every answer.

No page runs a script, applies a style or loads an image that is not this package's own; none is
shown in another site's frame or stays in a cache.
"""

from __future__ import annotations

import functools
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp_jinja2
import structlog
from aiohttp import web

from wds.console.sessions import Session
from wds.domain.errors import Refusal, SearchTooSlowError, StoreUnavailableError
from wds.web import error_envelope

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

log = structlog.get_logger(__name__)

SESSION = web.RequestKey("session", Session)
"""The session of a request to a page that needs one."""
RETRY_S = 5
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # With no-referrer a browser would send `Origin: null` with the console's own forms.
    "Referrer-Policy": "same-origin",
}


def page(
    request: web.Request, template: str, context: dict[str, Any], status: int = 200
) -> web.Response:
    """Render a template. It also gets the request's `session`, or None, for its forms."""
    return aiohttp_jinja2.render_template(
        template, request, {"session": request.get(SESSION), **context}, status=status
    )


def html_errors(handler: Handler) -> Handler:
    """Return `handler` with its errors rendered as pages and `HEADERS` added to every answer."""

    @functools.wraps(handler)
    async def wrapper(request: web.Request) -> web.StreamResponse:
        try:
            response = await handler(request)
        except web.HTTPException as error:
            if error.status < HTTPStatus.BAD_REQUEST:
                response = web.Response(status=error.status, headers=error.headers)
            else:
                response = _error_page(request, error_envelope.refusal_of_http(error))
        except _EXPECTED_ERRORS as error:
            response = _error_page(request, _refusal_of(error))
        except Exception:
            log.exception("page_crashed", method=request.method)
            refusal = Refusal(500, "internal_error", "an internal error; it is logged")
            response = _error_page(request, refusal)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return wrapper


_EXPECTED_ERRORS = (
    Refusal,
    SearchTooSlowError,
    StoreUnavailableError,
    web.RequestPayloadError,
    ConnectionError,
)


def _refusal_of(error: Exception) -> Refusal:
    """Return what the page of an expected error says."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, SearchTooSlowError):
        return error_envelope.TOO_SLOW
    if isinstance(error, StoreUnavailableError):
        return Refusal(
            503,
            "store_unavailable",
            "MongoDB does not answer. Acknowledged events are safe there. This page retries by"
            " itself.",
            retry_after_s=RETRY_S,
        )
    return Refusal(400, "incomplete_body", "the form did not arrive completely")


def _error_page(request: web.Request, refusal: Refusal) -> web.Response:
    error_envelope.record_refusal(request, refusal)
    title = HTTPStatus(refusal.status).phrase
    context = {"refusal": refusal, "title": title, "method": request.method}
    response = page(request, "error.html", context, refusal.status)
    if refusal.retry_after_s is not None:
        response.headers["Retry-After"] = str(refusal.retry_after_s)
    return response
