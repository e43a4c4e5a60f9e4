"""Swagger UI for the OpenAPI document of the service that serves it.

The page is wds's own. Swagger UI's page contains an inline script and obeys the page's query,
which may name another site's document. This one takes no query, and its policy lets it load files
of this service and send requests to this service only.

This module serves files and imports no other package of wds, so that the mock downstream can use
it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

PAGE = "/docs"
DOCUMENT = f"{PAGE}/openapi.json"
FILE = f"{PAGE}/static/{{name}}"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
        " connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}
"""`data:` is for the images in Swagger UI's style sheet."""
_OWN_FILES = Path(__file__).parent / "docs_page"
ICON = _OWN_FILES / "icon.svg"
"""The icon of every page of the service."""


def routes(*, console: str | None = None) -> list[tuple[str, str, Handler]]:
    """Return the routes of the page and its files: `(method, path, handler)`.

    `console` is the path of the service's console, if it has one; the page links to it.
    """
    swagger_ui = _directory("aiohttp_apispec") / "static"
    files = {name: swagger_ui / name for name in ("swagger-ui.css", "swagger-ui-bundle.js")}
    files |= {name: _OWN_FILES / name for name in ("page.css", "page.js", ICON.name)}
    back = "" if console is None else f'<a class="back" href="{console}">← Console</a>'
    template = (_OWN_FILES / "page.html").read_text("utf-8")
    html = Template(template).substitute(back=back)

    async def page(request: web.Request) -> web.StreamResponse:
        """Show the page; redirect a request with a query to the page without one."""
        if request.query_string:
            raise web.HTTPFound(PAGE)
        headers = {**HEADERS, "Cache-Control": "no-store"}
        return web.Response(text=html, content_type="text/html", charset="utf-8", headers=headers)

    async def file(request: web.Request) -> web.StreamResponse:
        """Return one of the page's files."""
        path = files.get(request.match_info["name"])
        if path is None:
            raise web.HTTPNotFound
        return web.FileResponse(path, headers={**HEADERS, "Cache-Control": "private, no-cache"})

    return [("GET", PAGE, page), ("GET", FILE, file)]


def _directory(package: str) -> Path:
    """Return the directory of a package without importing it; `resources.files` would import it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(package)
    return Path(spec.origin).parent
