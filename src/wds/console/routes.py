"""Which address of the console leads to what. All but the static files lie behind the doorway.

Swagger UI has the console's origin, so its page is locked down like the console's. It is guarded
like the API, whose document it shows.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web

from wds.console import templating
from wds.console.action_forms import ACTIONS, Confirm
from wds.console.auth import HOME, LOGIN, Doorway, presentable
from wds.console.events import Console
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
_ACTION = f"{ACTIONS}/{{request_id:[^/]+}}"  # any label, braces too
_STATIC = f"{HOME}/static/{{name}}"
_KEEP = "public, max-age=31536000, immutable"
"""The address of a static file changes with its contents."""


def add_to(
    app: web.Application, settings: Settings, store: Store, service: ActionService, guard: Guard
) -> None:
    """Add the console to `app`. Its routes are guarded by the doorway, not by `guard`.

    A browser that is logged in may also read what the API shows to operators.
    """
    door = Doorway(settings, guard, store.revoked_sessions)
    assets = templating.Assets()
    templating.set_up(app, assets, has_login=door.has_login)
    own = _add(app, [*_free(door, assets), *_guarded(door, store, service)])
    documents = swagger.routes(console=HOME)
    _add(app, [(method, path, presentable(show)) for method, path, show in documents])
    guard.share(own, door.knows)


def _add(app: web.Application, routes: list[Route]) -> set[str]:
    """Add routes, and a HEAD for every GET; return their patterns."""
    added = set()
    for method, path, handler in routes:
        for each in (method, "HEAD") if method == "GET" else (method,):
            resource = app.router.add_route(each, path, handler).resource
            added |= {resource.canonical} if resource else set()
    return added


def _free(door: Doorway, assets: templating.Assets) -> list[Route]:
    """Return the routes that need no session: they tell nothing of events."""

    async def home(_: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(HOME)

    async def static(request: web.Request) -> web.StreamResponse:
        found = assets.get(request.match_info["name"])
        if found is None:
            raise _no_file()
        body, kind = found
        headers = {"Cache-Control": _KEEP, "Content-Type": f"{kind}; charset=utf-8"}
        return web.Response(body=body, headers=headers)

    return [
        ("GET", "/", presentable(home)),
        ("GET", LOGIN, presentable(door.login_page)),
        ("POST", LOGIN, presentable(door.login)),
        ("GET", _STATIC, presentable(static)),
    ]


def _no_file() -> Refusal:
    return Refusal(404, "not_found", "there is no such file")


def _guarded(door: Doorway, store: Store, service: ActionService) -> list[Route]:
    console = Console(store)
    confirm = Confirm(store, console, service)

    async def nothing(_: web.Request) -> web.StreamResponse:
        raise Refusal(404, "not_found", HTTPStatus.NOT_FOUND.description)

    routes: list[Route] = [
        ("GET", HOME, console.events),
        ("GET", f"{HOME}/find", console.find),
        ("GET", _EVENT, console.event),
        ("GET", f"{_EVENT}/payload", console.payload),
        ("GET", ACTIONS, confirm.actions),
        ("GET", _ACTION, confirm.action),
        ("POST", f"{_ACTION}/stop", confirm.stop),
        ("POST", f"{HOME}/logout", door.logout),
    ]
    for action in Action:
        routes += [
            ("GET", f"{_EVENT}/{action}", confirm.ask_one(action)),
            ("POST", f"{_EVENT}/{action}", confirm.do_one(action)),
            ("GET", f"{HOME}/{action}", confirm.ask_all(action)),
            ("POST", f"{HOME}/{action}", confirm.do_all(action)),
        ]
    routes.append(("GET", f"{HOME}/{{rest:.*}}", nothing))
    return [(method, path, door.opened(handler)) for method, path, handler in routes]
