"""What lies between a browser and the console: who comes in, from where, and how pages leave.

What must stay true:

* No page is shown and nothing is done without a session, or the rule for local clients.
* Nothing is done unless the form came from a page of this service: the browser says so
  (`Sec-Fetch-Site`, else `Origin`), and the form carries the token that belongs to the session.
* No page runs a script, draws a style or loads an image that is not this package's own, sits in a
  foreign frame, or stays in a cache.
"""

from __future__ import annotations

import functools
import os
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp_jinja2
import structlog
from aiohttp import web

from wds.console.sessions import LIFETIME_S, NONCE_BYTES, Session, Sessions, same
from wds.domain.errors import Refusal, SearchTooSlowError, StoreUnavailableError
from wds.web import error_envelope
from wds.web.operator_access import FOREIGN_SITES, from_own_page, refuse

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

    from wds.config import Settings
    from wds.storage.revoked_sessions import RevokedSessions
    from wds.web.operator_access import Guard

log = structlog.get_logger(__name__)

SESSION = web.RequestKey("session", Session)
HOME = "/console"
LOGIN = f"{HOME}/login"
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
    # Not no-referrer: with that a browser says `Origin: null` of the console's own forms.
    "Referrer-Policy": "same-origin",
}


class Doorway:
    """Opens the console's handlers to those who may come in."""

    def __init__(self, settings: Settings, guard: Guard, logouts: RevokedSessions) -> None:
        """Take the rules. Every replica with the same secrets accepts the same sessions."""
        self._guard = guard
        self._logouts = logouts
        self.has_login = settings.operator_token is not None
        if settings.operator_token is not None:
            self._sessions = Sessions(settings.operator_token, "operator")
        else:
            # Nobody logs in; the session only ties forms to the browser they were shown to.
            self._sessions = Sessions(settings.hmac_secrets[0], "visitor")

    def opened(self, handler: Handler) -> Handler:
        """Return `handler` behind the rules above, its errors as pages."""

        @functools.wraps(handler)
        async def guarded(request: web.Request) -> web.StreamResponse:
            session = await self._session(request)
            if session is None or not self.has_login:
                if _came_over(request):
                    return page(request, "again.html", {"address": request.path_qs})
                if self.has_login and "Authorization" not in request.headers:
                    return self._to_login(request)
                self._guard.check(request)
            new = session is None
            session = session or self._sessions.begin(time.time(), os.urandom(NONCE_BYTES))
            request[SESSION] = session
            if request.method == "POST":
                await _check_form(request, session)
            response = await handler(request)
            if new and not self.has_login:
                _give(request, response, session)
            return response

        return presentable(guarded)

    async def knows(self, request: web.Request) -> bool:
        """Tell whether somebody has logged in with the browser that sent this.

        Raises:
            StoreUnavailableError: nobody can tell whether it has logged out since.
        """
        return self.has_login and await self._session(request) is not None

    async def login_page(self, request: web.Request) -> web.StreamResponse:
        """Show the form for the token."""
        target = _local(request.query.get("next", ""))
        if not self.has_login or await self._session(request) is not None:
            raise web.HTTPSeeOther(target)
        return page(request, "login.html", {"target": target, "refusal": None})

    async def login(self, request: web.Request) -> web.StreamResponse:
        """Begin a session, if the form holds the token; show the form again if it does not."""
        if not from_own_page(request):
            raise _foreign()
        form = await form_of(request)
        target = _local(form.get("next", ""))
        if not self.has_login:
            raise web.HTTPSeeOther(HOME)
        try:
            self._guard.check_token(request, form.get("token", "").strip())
        except Refusal as refusal:
            error_envelope.record_refusal(request, refusal)
            shown = page(
                request, "login.html", {"target": target, "refusal": refusal}, refusal.status
            )
            if refusal.retry_after_s is not None:
                shown.headers["Retry-After"] = str(refusal.retry_after_s)
            return shown
        log.info("operator_logged_in", remote=request.remote)
        response = web.Response(status=303, headers={"Location": target})
        _give(request, response, self._sessions.begin(time.time(), os.urandom(NONCE_BYTES)))
        return response

    async def logout(self, request: web.Request) -> web.StreamResponse:
        """End the session at every replica, and take it out of the browser."""
        if self.has_login and (session := request.get(SESSION)) is not None:
            await self._logouts.end(session.digest, session.expires_at)
        log.info("operator_logged_out", remote=request.remote)
        response = web.Response(status=303, headers={"Location": LOGIN})
        response.del_cookie(
            _cookie(request), path="/", secure=_is_https(request), httponly=True, samesite="Strict"
        )
        return response

    async def _session(self, request: web.Request) -> Session | None:
        """Return the session of the browser, if its time is not over and nobody has ended it."""
        session = self._sessions.read(request.cookies.get(_cookie(request), ""), time.time())
        if session is None or not self.has_login or not await self._logouts.has(session.digest):
            return session
        return None

    def _to_login(self, request: web.Request) -> web.StreamResponse:
        if request.method != "GET":
            raise refuse(401, "no_session", "the session is over; log in and try again")
        address = LOGIN if request.path_qs == HOME else f"{LOGIN}?next={quote(request.path_qs)}"
        return web.Response(status=303, headers={"Location": address})


def presentable(handler: Handler) -> Handler:
    """Return `handler` with its errors turned into pages, and every answer locked down."""

    @functools.wraps(handler)
    async def shown(request: web.Request) -> web.StreamResponse:
        try:
            response = await handler(request)
        except Refusal as refusal:
            response = _refused(request, refusal)
        except SearchTooSlowError:
            response = _refused(request, error_envelope.TOO_SLOW)
        except StoreUnavailableError:
            response = _refused(
                request,
                Refusal(
                    503,
                    "store_unavailable",
                    "MongoDB does not answer. Events already acknowledged are safe there; this"
                    " page tries again by itself.",
                    retry_after_s=RETRY_S,
                ),
            )
        except web.HTTPException as error:
            if error.status >= HTTPStatus.BAD_REQUEST:
                response = _refused(request, error_envelope.refusal_of_http(error))
            else:
                response = web.Response(status=error.status, headers=error.headers)
        except (web.RequestPayloadError, ConnectionError):
            response = _refused(
                request, Refusal(400, "incomplete_body", "the form did not arrive whole")
            )
        except Exception:
            log.exception("page_crashed", method=request.method)
            response = _refused(
                request, Refusal(500, "internal_error", "an error in wds; it is logged")
            )
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return shown


def page(
    request: web.Request, template: str, context: dict[str, Any], status: int = 200
) -> web.Response:
    """Render a template; `session` is there for its forms, if there is one."""
    return aiohttp_jinja2.render_template(
        template, request, {"session": request.get(SESSION), **context}, status=status
    )


def _refused(request: web.Request, refusal: Refusal) -> web.Response:
    error_envelope.record_refusal(request, refusal)
    title = HTTPStatus(refusal.status).phrase
    context = {"refusal": refusal, "title": title, "method": request.method}
    response = page(request, "error.html", context, refusal.status)
    if refusal.retry_after_s is not None:
        response.headers["Retry-After"] = str(refusal.retry_after_s)
    return response


async def form_of(request: web.Request) -> dict[str, str]:
    """Return the fields of a form, as this service's pages send it; none if there is no form.

    Raises:
        Refusal: 415 if it is in parts, 400 if it is not in UTF-8.
    """
    if request.content_type.startswith("multipart/"):
        raise Refusal(415, "unsupported_media_type", "send the form URL-encoded; nothing was done")
    try:
        form = await request.post()
    except (ValueError, LookupError):
        raise Refusal(400, "invalid_form", "the form is not in UTF-8; nothing was done") from None
    return {name: value for name, value in form.items() if isinstance(value, str)}


async def _check_form(request: web.Request, session: Session) -> None:
    """Return if a page of this service, shown to this browser in this session, sent the form.

    Raises:
        Refusal: 403 if not.
    """
    if not from_own_page(request):
        raise _foreign()
    if not same((await form_of(request)).get("form_token", ""), session.form_token):
        raise refuse(
            403,
            "stale_form",
            "the form belongs to another session; nothing was done. Go back, reload the page and"
            " send it again",
            code="stale_form",
        )


def _foreign() -> Refusal:
    message = "the form came from a foreign page; nothing was done"
    return refuse(403, "cross_site", message, code="cross_site")


def _came_over(request: web.Request) -> bool:
    """Tell whether a link on a foreign page led here.

    The browser then keeps the session's cookie back, for the whole visit to this one page. Asked
    to come again by a page of ours, it sends it.
    """
    return (
        request.method == "GET"
        and request.headers.get("Sec-Fetch-Site") in FOREIGN_SITES
        and request.headers.get("Sec-Fetch-Dest") == "document"
    )


def _give(request: web.Request, response: web.StreamResponse, session: Session) -> None:
    response.set_cookie(
        _cookie(request),
        session.text,
        max_age=LIFETIME_S,
        path="/",
        secure=_is_https(request),
        httponly=True,
        samesite="Strict",
    )


def _cookie(request: web.Request) -> str:
    """Return the cookie's name; by the prefix a browser keeps it to this host and to HTTPS."""
    return "__Host-wds_session" if _is_https(request) else "wds_session"


def _is_https(request: web.Request) -> bool:
    """Tell whether the browser speaks HTTPS, to this process or to a proxy before it."""
    return request.secure or (
        request.headers.get("X-Forwarded-Proto", "").split(",")[0].strip().lower() == "https"
    )


def _local(address: str) -> str:
    """Return `address` if it is one of the console's, else its first page."""
    inside = address == HOME or address.startswith((f"{HOME}/", f"{HOME}?"))
    plain = address.isascii() and address.isprintable() and "\\" not in address
    return address if inside and plain else HOME
