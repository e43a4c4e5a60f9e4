"""Access to the console: login and logout, the session cookie, and protection against CSRF.

What must stay true:

* No page is shown and no form does anything without a session. Without `WDS_OPERATOR_TOKEN` there
  is no login; the rules for local clients (`web.operator_access`) apply instead.
* A form does nothing unless a page of this service sent it: the browser says so
  (`Sec-Fetch-Site`, else `Origin`), and the form carries its session's form token.
"""

from __future__ import annotations

import functools
import os
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

import structlog
from aiohttp import web

from wds.console.paths import HOME, LOGIN
from wds.console.rendering import SESSION, html_errors, page
from wds.console.sessions import (
    LIFETIME_S,
    NONCE_BYTES,
    Session,
    SessionSigner,
    form_tokens_match,
)
from wds.domain.errors import Refusal
from wds.web import error_envelope
from wds.web.operator_access import FOREIGN_SITES, counted_refusal, from_own_page

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

    from wds.config import Settings
    from wds.storage.revoked_sessions import RevokedSessions
    from wds.web.operator_access import Guard

log = structlog.get_logger(__name__)


class SessionAuth:
    """Authenticates browsers by a session cookie, and checks their forms."""

    def __init__(self, settings: Settings, guard: Guard, revoked: RevokedSessions) -> None:
        """Derive the session keys; replicas with the same secrets accept the same sessions.

        `guard` checks the token at login, and clients that need no session.
        """
        self._guard = guard
        self._revoked = revoked
        self.has_login = settings.operator_token is not None
        if settings.operator_token is not None:
            self._signer = SessionSigner(settings.operator_token, "operator")
        else:
            # Nobody logs in. The session only ties forms to the browser they were shown to.
            self._signer = SessionSigner(settings.hmac_secrets[0], "visitor")

    def require_session(self, handler: Handler) -> Handler:
        """Return `handler` with the rules above checked first, and errors rendered as pages."""

        @functools.wraps(handler)
        async def wrapper(request: web.Request) -> web.StreamResponse:
            session = await self._session(request)
            if session is None or not self.has_login:
                if _is_cross_site_navigation(request):
                    return page(request, "interstitial.html", {"address": request.path_qs})
                if self.has_login and "Authorization" not in request.headers:
                    return self._login_redirect(request)
                self._guard.check(request)
            is_new = session is None
            session = session or self._new_session()
            request[SESSION] = session
            if request.method == "POST":
                await _check_form(request, session)
            response = await handler(request)
            if is_new and not self.has_login:
                _set_cookie(request, response, session)
            return response

        return html_errors(wrapper)

    async def is_logged_in(self, request: web.Request) -> bool:
        """Tell whether the browser that sent the request has a session of a login.

        Raises:
            StoreUnavailableError: it cannot be checked whether the session was revoked.
        """
        return self.has_login and await self._session(request) is not None

    async def login_page(self, request: web.Request) -> web.StreamResponse:
        """Show the form for the token."""
        target = _local_target(request.query.get("next", ""))
        if not self.has_login or await self._session(request) is not None:
            raise web.HTTPSeeOther(target)
        return page(request, "login.html", {"target": target, "refusal": None})

    async def login(self, request: web.Request) -> web.StreamResponse:
        """Start a session if the form holds the token; otherwise show the form again."""
        if not from_own_page(request):
            raise _cross_site()
        form = await read_form(request)
        target = _local_target(form.get("next", ""))
        if not self.has_login:
            raise web.HTTPSeeOther(HOME)
        try:
            self._guard.check_token(request, form.get("token", "").strip())
        except Refusal as refusal:
            error_envelope.record_refusal(request, refusal)
            context = {"target": target, "refusal": refusal}
            login_page = page(request, "login.html", context, refusal.status)
            if refusal.retry_after_s is not None:
                login_page.headers["Retry-After"] = str(refusal.retry_after_s)
            return login_page
        log.info("operator_logged_in", remote=request.remote)
        response = web.Response(status=303, headers={"Location": target})
        _set_cookie(request, response, self._new_session())
        return response

    async def logout(self, request: web.Request) -> web.StreamResponse:
        """Revoke the session at every replica and delete the browser's cookie."""
        if self.has_login and (session := request.get(SESSION)) is not None:
            await self._revoked.end(session.digest, session.expires_at)
        log.info("operator_logged_out", remote=request.remote)
        response = web.Response(status=303, headers={"Location": LOGIN})
        response.del_cookie(
            _cookie_name(request),
            path="/",
            secure=_is_https(request),
            httponly=True,
            samesite="Strict",
        )
        return response

    def _new_session(self) -> Session:
        return self._signer.issue(time.time(), os.urandom(NONCE_BYTES))

    async def _session(self, request: web.Request) -> Session | None:
        """Return the browser's session, or None if it is invalid, expired or revoked."""
        cookie = request.cookies.get(_cookie_name(request), "")
        session = self._signer.verify(cookie, time.time())
        if session is None or not self.has_login or not await self._revoked.has(session.digest):
            return session
        return None

    def _login_redirect(self, request: web.Request) -> web.StreamResponse:
        if request.method != "GET":
            raise counted_refusal(
                401, "no_session", "there is no valid session; log in and try again"
            )
        address = LOGIN if request.path_qs == HOME else f"{LOGIN}?next={quote(request.path_qs)}"
        return web.Response(status=303, headers={"Location": address})


# -- forms -----------------------------------------------------------------------------------


async def read_form(request: web.Request) -> dict[str, str]:
    """Return the fields of a URL-encoded form; empty if the request has none.

    Raises:
        Refusal: 415 if the form is multipart, 400 if it is not UTF-8.
    """
    if request.content_type.startswith("multipart/"):
        raise Refusal(415, "unsupported_media_type", "send the form URL-encoded; nothing was done")
    try:
        form = await request.post()
    except (ValueError, LookupError):
        raise Refusal(400, "invalid_form", "the form is not in UTF-8; nothing was done") from None
    return {name: value for name, value in form.items() if isinstance(value, str)}


async def _check_form(request: web.Request, session: Session) -> None:
    """Check that a page of this service sent the form, and showed it in this session.

    Raises:
        Refusal: 403 if not.
    """
    if not from_own_page(request):
        raise _cross_site()
    if not form_tokens_match((await read_form(request)).get("form_token", ""), session.form_token):
        raise counted_refusal(
            403,
            "stale_form",
            "the form belongs to another session; nothing was done. Go back, reload the page and"
            " send the form again",
            code="stale_form",
        )


def _cross_site() -> Refusal:
    message = "the form came from a page of another site; nothing was done"
    return counted_refusal(403, "cross_site", message, code="cross_site")


def _is_cross_site_navigation(request: web.Request) -> bool:
    """Tell whether the user followed a link on another site.

    The browser then withholds the SameSite=Strict cookie from this one request. It sends the
    cookie when a page of this service asks for the address again (interstitial.html).
    """
    return (
        request.method == "GET"
        and request.headers.get("Sec-Fetch-Site") in FOREIGN_SITES
        and request.headers.get("Sec-Fetch-Dest") == "document"
    )


# -- the cookie ------------------------------------------------------------------------------


def _set_cookie(request: web.Request, response: web.StreamResponse, session: Session) -> None:
    response.set_cookie(
        _cookie_name(request),
        session.text,
        max_age=LIFETIME_S,
        path="/",
        secure=_is_https(request),
        httponly=True,
        samesite="Strict",
    )


def _cookie_name(request: web.Request) -> str:
    """Return the cookie's name. `__Host-` makes browsers bind it to this host and to HTTPS."""
    return "__Host-wds_session" if _is_https(request) else "wds_session"


def _is_https(request: web.Request) -> bool:
    """Tell whether the browser uses HTTPS, to this process or to a proxy in front of it."""
    return request.secure or (
        request.headers.get("X-Forwarded-Proto", "").split(",")[0].strip().lower() == "https"
    )


def _local_target(address: str) -> str:
    """Return `address` if it is in the console, else the console's first page.

    This keeps `?next=` from redirecting to another site.
    """
    in_console = address == HOME or address.startswith((f"{HOME}/", f"{HOME}?"))
    is_plain = address.isascii() and address.isprintable() and "\\" not in address
    return address if in_console and is_plain else HOME
