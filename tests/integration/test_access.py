"""Who may use the operators' routes, and that everybody may use the others."""

from __future__ import annotations

import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.support import make_settings, new_event, signed
from wds.ingest import create_app
from wds.server import listening

TOKEN = "operators-token"
EVENT = new_event(b'{"n":1}', key="k")
OPERATORS = [
    ("POST", "/webhooks/search"),
    ("GET", f"/webhooks/events/{EVENT.id}"),
    ("GET", f"/webhooks/events/{EVENT.id}/payload"),
    ("GET", "/webhooks/events/unknown"),
]
FORWARDED = [
    {"X-Forwarded-For": "127.0.0.1"},
    {"X-Forwarded-Host": "example.com"},
    {"Forwarded": "for=127.0.0.1"},
    {"X-Real-IP": "127.0.0.1"},
    {"Via": "1.1 proxy"},
]


@pytest.fixture
def serving(engines, store, db):  # noqa: ARG001 - `db` drops the database
    """Return a function that serves the app under given settings and gives an `ask`."""

    @asynccontextmanager
    async def run(**changes):
        app = create_app(make_settings(engines, **changes), store)
        await store.insert([EVENT])
        async with listening(app, "127.0.0.1", 0) as port, aiohttp.ClientSession() as session:

            async def ask(method, path, headers=None, body=None):
                url = f"http://127.0.0.1:{port}{path}"
                async with session.request(method, url, headers=headers, data=body) as response:
                    await response.read()
                    return response

            yield ask

    return run


async def statuses(ask, headers=None):
    return [(await ask(method, path, headers)).status for method, path in OPERATORS]


async def code(response):
    return (await response.json())["error"]["code"]


async def test_the_token_opens_the_operators_routes(serving):
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        assert await statuses(ask, {"Authorization": f"Bearer {TOKEN}"}) == [200, 200, 200, 404]
        assert await statuses(ask, {"Authorization": f"bearer {TOKEN}"}) == [200, 200, 200, 404]


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer žluť",
    ],
)
async def test_without_the_right_token_nothing_is_shown_to_anybody(serving, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        for method, path in OPERATORS:
            response = await ask(method, path, headers)
            assert (response.status, await code(response)) == (401, "operators_only")
            assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_the_token_opens_through_a_proxy_too(serving):
    headers = {"Authorization": f"Bearer {TOKEN}", **FORWARDED[0]}
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        assert await statuses(ask, headers) == [200, 200, 200, 404]


async def test_an_open_service_still_asks_for_the_token_that_is_set(serving):
    async with serving(WDS_OPERATOR_TOKEN=TOKEN, WDS_OPERATOR_OPEN="true") as ask:
        assert await statuses(ask) == [401] * 4


async def test_without_a_token_set_local_clients_are_let_in(serving):
    async with serving() as ask:
        assert await statuses(ask) == [200, 200, 200, 404]


@pytest.mark.parametrize("headers", FORWARDED, ids=lambda headers: next(iter(headers)))
async def test_without_a_token_set_a_forwarded_request_is_refused(serving, headers):
    async with serving() as ask:
        for method, path in OPERATORS:
            response = await ask(method, path, headers)
            assert (response.status, await code(response)) == (403, "operators_only")
            assert "WWW-Authenticate" not in response.headers


async def test_without_a_token_set_a_client_without_an_address_is_refused(engines, store, db):
    await store.insert([EVENT])
    runner = web.AppRunner(create_app(make_settings(engines), store), access_log=None)
    await runner.setup()
    with tempfile.TemporaryDirectory() as home:
        path = str(Path(home, "socket"))
        await web.UnixSite(runner, path).start()
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session:
            answers = [
                await session.request(method, f"http://localhost{route}")
                for method, route in OPERATORS
            ]
            assert [answer.status for answer in answers] == [403] * 4
    await runner.cleanup()

    assert await db.events.count_documents({}) == 1


@pytest.mark.parametrize("headers", FORWARDED, ids=lambda headers: next(iter(headers)))
async def test_an_open_service_lets_forwarded_requests_in(serving, headers):
    async with serving(WDS_OPERATOR_OPEN="true") as ask:
        assert await statuses(ask, headers) == [200, 200, 200, 404]


@pytest.mark.parametrize("changes", [{}, {"WDS_OPERATOR_TOKEN": TOKEN}], ids=["none", "token"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/webhooks/ingest", b"{}"),
        ("POST", "/webhooks/ingest/batch", b"[{}]"),
        ("GET", "/healthz", None),
        ("GET", "/readyz", None),
        ("GET", "/metrics", None),
        ("GET", "/docs", None),
        ("GET", "/docs/openapi.json", None),
        ("GET", "/docs/static/swagger-ui.css", None),
    ],
)
async def test_the_other_routes_are_open_to_everybody(serving, changes, method, path, body):
    headers = {**FORWARDED[0], **(signed(body) if body else {})}
    async with serving(**changes) as ask:
        response = await ask(method, path, headers, body)

    assert response.status == (202 if body else 200)
