"""The console's routes, and the objects behind them.

To add a page: write its handler in a module of this package, ending in `rendering.page(request,
"NAME.html", ...)`; its template in `templates/`, extending `base.html`; and its route in
`_session_routes`, before the last one. The session, the security headers and error pages come with
the route. A link in the navigation is a line of `base.html`: it is marked as
current on the templates that set `section` to its name.

Swagger UI has the console's origin, so its page gets the console's headers. It is guarded like the
API that it documents.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web

from wds.console import templating
from wds.console.action_forms import ActionForms
from wds.console.auth import SessionAuth
from wds.console.bulk_actions import BulkActionPages
from wds.console.event_counts import EventCounts
from wds.console.events import EventPages
from wds.console.paths import ACTIONS, HOME, LOGIN
from wds.console.rendering import html_errors
from wds.domain.errors import Refusal
from wds.domain.operator_actions import Action
from wds.web import swagger

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

    from wds.actions.service import ActionService
    from wds.config import Settings
    from wds.storage.store import Store
    from wds.web.operator_access import Guard

    Route = tuple[str, str, Handler]

_EVENT = f"{HOME}/events/{{id}}"
_ACTION = f"{ACTIONS}/{{request_id:[^/]+}}"  # a request id may contain braces
_STATIC = f"{HOME}/static/{{name}}"
_CACHE_FOREVER = "public, max-age=31536000, immutable"
"""The URL of a static file changes with its contents."""


def add_to(
    app: web.Application, settings: Settings, store: Store, service: ActionService, guard: Guard
) -> None:
    """Add the console to `app`.

    `SessionAuth` guards its routes, not `guard`. A browser that is logged in may also read the
    operators' routes of the API.
    """
    auth = SessionAuth(settings, guard, store.revoked_sessions)
    files = templating.StaticFiles()
    templating.set_up(app, files, has_login=auth.has_login)
    routes = [*_public_routes(auth, files), *_session_routes(auth, store, service)]
    patterns = _add_routes(app, routes)
    swagger_routes = swagger.routes(console=HOME)
    _add_routes(app, [(method, path, html_errors(show)) for method, path, show in swagger_routes])
    guard.exempt(patterns)
    guard.admit_readers(auth.is_logged_in)


def _add_routes(app: web.Application, routes: list[Route]) -> set[str]:
    """Add routes, with HEAD for every GET; return their patterns."""
    patterns = set()
    for method, path, handler in routes:
        for each in (method, "HEAD") if method == "GET" else (method,):
            resource = app.router.add_route(each, path, handler).resource
            patterns |= {resource.canonical} if resource else set()
    return patterns


def _public_routes(auth: SessionAuth, files: templating.StaticFiles) -> list[Route]:
    """Return the routes that need no session. They reveal nothing about events."""

    async def home(_: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(HOME)

    async def static(request: web.Request) -> web.StreamResponse:
        file = files.get(request.match_info["name"])
        if file is None:
            raise Refusal(404, "not_found", "there is no such file")
        body, content_type = file
        headers = {
            "Cache-Control": _CACHE_FOREVER,
            "Content-Type": f"{content_type}; charset=utf-8",
        }
        return web.Response(body=body, headers=headers)

    return [
        ("GET", "/", html_errors(home)),
        ("GET", LOGIN, html_errors(auth.login_page)),
        ("POST", LOGIN, html_errors(auth.login)),
        ("GET", _STATIC, html_errors(static)),
    ]


def _session_routes(auth: SessionAuth, store: Store, service: ActionService) -> list[Route]:
    """Return the routes that need a session. The last one answers 404 to any other path."""
    counts = EventCounts(store.reader, store.rollups)
    events = EventPages(store.reader, store.queue, store.replicas, counts, store.now)
    forms = ActionForms(store.reader, service, store.now)
    bulk_actions = BulkActionPages(service, store.now)

    async def not_found(_: web.Request) -> web.StreamResponse:
        raise Refusal(404, "not_found", HTTPStatus.NOT_FOUND.description)

    routes: list[Route] = [
        ("GET", HOME, events.list_events),
        ("GET", f"{HOME}/find", events.find),
        ("GET", _EVENT, events.show_event),
        ("GET", f"{_EVENT}/payload", events.download_payload),
        ("GET", ACTIONS, bulk_actions.list_recent),
        ("GET", _ACTION, bulk_actions.show),
        ("POST", f"{_ACTION}/stop", bulk_actions.stop),
        ("POST", f"{HOME}/logout", auth.logout),
    ]
    for action in Action:  # /console/replay and /console/cancel, and the same below one event
        routes += [
            ("GET", f"{_EVENT}/{action}", forms.show_one(action)),
            ("POST", f"{_EVENT}/{action}", forms.submit_one(action)),
            ("GET", f"{HOME}/{action}", forms.show_bulk(action)),
            ("POST", f"{HOME}/{action}", forms.submit_bulk(action)),
        ]
    routes.append(("GET", f"{HOME}/{{rest:.*}}", not_found))
    return [(method, path, auth.require_session(handler)) for method, path, handler in routes]
