"""Every page and file of the console: status, security headers, caching."""

from __future__ import annotations

import re

import pytest

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)


async def test_root_redirects_to_the_console(get_page):
    answer = await get_page("/")
    assert (answer.status, answer.headers["Location"]) == (302, "/console")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/console", 200),
        ("/console?status=LOST", 422),
        ("/console/events/{id}", 200),
        ("/console/events/{id}/replay", 200),
        ("/console/events/{id}/cancel", 200),
        ("/console/replay?range=all", 200),
        ("/console/cancel?range=all", 200),
        ("/console/actions", 200),
        ("/console/events/unknown", 404),
        ("/console/actions/unknown", 404),
        ("/console/no/such/page", 404),
        ("/console/login", 303),
        ("/console/find?q=nothing", 302),
        ("/", 302),
        ("/docs", 200),
        ("/docs?url=https://evil.example/x.json", 302),
        ("/docs/static/none.js", 404),
    ],
)
async def test_console_answers_all_have_the_security_headers(get_page, stored_events, path, status):
    page = await get_page(path.replace("{id}", stored_events[0]["_id"]))
    assert page.status == status
    policy = DOCS_POLICY if path == "/docs" else POLICY
    assert page.headers["Content-Security-Policy"] == policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["X-Frame-Options"] == "DENY"
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["Referrer-Policy"] == "same-origin"
    assert not page.all("style")
    for attrs in page.all("script"):
        assert attrs["src"].startswith(("/console/static/", "/docs/static/"))
    for _, attrs in page.elements:
        assert not [name for name in attrs if name == "style" or name.startswith("on")]
    if status in {200, 404, 422}:
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert page.all("html", lang="en")
        assert len(page.all("h1")) == 1


async def test_static_files_are_immutable_and_their_urls_have_a_digest(get_page):
    page = await get_page("/console")
    urls = [page.all("script")[0]["src"], *(link["href"] for link in page.all("link"))]
    content_types = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert len(urls) == 3
    for url in urls:
        file = await get_page(url)
        assert file.status == 200
        assert file.headers["Content-Type"].startswith(
            content_types[url.partition("?")[0].rpartition(".")[2]]
        )
        assert "immutable" in file.headers["Cache-Control"]
        assert file.headers["X-Content-Type-Options"] == "nosniff"
        assert re.search(r"\?v=[0-9a-f]{12}$", url)


@pytest.mark.parametrize("name", ["swagger-ui.css", "swagger-ui-bundle.js", "page.css"])
async def test_swagger_ui_files_have_their_type_and_are_revalidated(get_page, name):
    file = await get_page(f"/docs/static/{name}")
    assert re.fullmatch("text/css|(text|application)/javascript", file.headers["Content-Type"])
    assert file.headers["X-Content-Type-Options"] == "nosniff"
    assert file.headers["X-Frame-Options"] == "DENY"
    assert file.headers["Referrer-Policy"] == "same-origin"
    assert file.headers["Cache-Control"] == "private, no-cache"
    again = await get_page(f"/docs/static/{name}", **{"If-None-Match": file.headers["ETag"]})
    assert again.status == 304


@pytest.mark.parametrize(
    "name", ["none.css", "..%2fauth.py", "%2e%2e/events.py", "oauth2-redirect.html"]
)
async def test_static_routes_serve_no_other_file(get_page, name):
    for where in ("/console", "/docs"):
        assert (await get_page(f"{where}/static/{name}")).status == 404
