"""Operators' routes refuse other clients; public routes admit everybody."""

from __future__ import annotations

import re
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import REGISTRY

from tests.support import make_settings, new_event, signed
from wds.ingest import create_app
from wds.web.failure_throttle import (
    BURST,
    BURST_OF_PROXY,
    REFILL_S,
)
from wds.web.monitoring import monitoring_app
from wds.web.operator_access import (
    PUBLIC,
    Guard,
    _equal,
)
from wds.web.server import listening

TOKEN = "operators-token"
EVENT = new_event(b'{"n":1}', key="k")
OPERATORS = [
    ("POST", "/webhooks/search"),
    ("GET", f"/webhooks/events/{EVENT.id}"),
    ("GET", f"/webhooks/events/{EVENT.id}/payload"),
    ("GET", "/webhooks/events/unknown"),
]
HOSTS = {
    "localhost": 200,
    "LocalHost:8000": 200,
    "localhost.": 200,
    "wds.localhost:1": 200,
    "127.0.0.1": 200,
    "127.8.9.1:80": 200,
    "[::1]:8000": 200,
    "evil.example": 403,
    "localhost.evil.example": 403,
    "127.0.0.1.evil.example": 403,
    "notlocalhost": 403,
    "10.0.0.1": 403,
    "0.0.0.0": 403,  # noqa: S104 - asked for, not bound to
    "[::1": 403,
    "": 403,
}
"""`Host` headers of a client on this machine, and the status of the answer."""
FORWARDED = [
    {"X-Forwarded-For": "127.0.0.1"},
    {"X-Forwarded-Host": "example.com"},
    {"Forwarded": "for=127.0.0.1"},
    {"X-Real-IP": "127.0.0.1"},
    {"Via": "1.1 proxy"},
]


@pytest.fixture
def serving(engines, store, db):  # noqa: ARG001 - `db` drops the database
    """Return a context manager that serves the app under some settings and yields `ask`."""

    @asynccontextmanager
    async def run(**changes):
        app = create_app(make_settings(engines, **changes), store)
        await store.writer.insert([EVENT])
        async with listening(app, "127.0.0.1", 0) as port, aiohttp.ClientSession() as session:

            async def ask(method, path, headers=None, body=None):
                url = f"http://127.0.0.1:{port}{path}"
                async with session.request(method, url, headers=headers, data=body) as response:
                    await response.read()
                    return response

            ask.app, ask.origin = app, f"http://127.0.0.1:{port}"
            yield ask

    return run


async def statuses(ask, headers=None):
    return [(await ask(method, path, headers)).status for method, path in OPERATORS]


async def code(response):
    return (await response.json())["error"]["code"]


async def test_operator_token_opens_the_operators_routes(serving):
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
async def test_operator_routes_show_nothing_without_the_right_token(serving, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        for method, path in OPERATORS:
            response = await ask(method, path, headers)
            assert (response.status, await code(response)) == (401, "operators_only")
            assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_operator_token_opens_through_a_proxy(serving):
    headers = {"Authorization": f"Bearer {TOKEN}", **FORWARDED[0]}
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        assert await statuses(ask, headers) == [200, 200, 200, 404]


async def test_operator_open_does_not_override_a_token(serving):
    async with serving(WDS_OPERATOR_TOKEN=TOKEN, WDS_OPERATOR_OPEN="true") as ask:
        assert await statuses(ask) == [401] * 4


async def test_local_client_is_admitted_where_no_token_is_set(serving):
    async with serving() as ask:
        assert await statuses(ask) == [200, 200, 200, 404]


@pytest.mark.parametrize("headers", FORWARDED, ids=lambda headers: next(iter(headers)))
async def test_forwarded_request_is_refused_where_no_token_is_set(serving, headers):
    async with serving() as ask:
        for method, path in OPERATORS:
            response = await ask(method, path, headers)
            assert (response.status, await code(response)) == (403, "operators_only")
            assert "WWW-Authenticate" not in response.headers


async def test_client_without_an_address_is_refused_where_no_token_is_set(engines, store, db):
    await store.writer.insert([EVENT])
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
async def test_operator_open_admits_forwarded_requests(serving, headers):
    async with serving(WDS_OPERATOR_OPEN="true", WDS_OPERATOR_HOSTS="example.com") as ask:
        assert await statuses(ask, headers) == [200, 200, 200, 404]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"Sec-Fetch-Site": "same-origin"}, 202),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://wds.example", "X-Forwarded-Host": "wds.example"}, 202),
    ],
)
async def test_operator_open_lets_no_foreign_page_change_anything(serving, db, headers, status):
    """Browsers send such a request without a preflight, because of its content type."""
    headers = {"Content-Type": "text/plain", **headers}
    async with serving(WDS_OPERATOR_OPEN="true", WDS_OPERATOR_HOSTS="wds.example") as ask:
        response = await ask("POST", "/webhooks/replay", headers, b'{"status": "DELIVERED"}')
        assert response.status == status
        assert (await ask("GET", f"/webhooks/events/{EVENT.id}", headers)).status == 200
    assert await db.bulk_actions.count_documents({}) == (1 if status == 202 else 0)


@pytest.mark.parametrize("changes", [{}, {"WDS_OPERATOR_TOKEN": TOKEN}], ids=["none", "token"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/webhooks/ingest", b"{}"),
        ("POST", "/webhooks/ingest/batch", b"[{}]"),
        ("GET", "/healthz", None),
        ("GET", "/readyz", None),
        ("GET", "/metrics", None),
    ],
)
async def test_public_routes_are_open_to_everybody(serving, changes, method, path, body):
    headers = {**FORWARDED[0], **(signed(body) if body else {})}
    async with serving(**changes) as ask:
        response = await ask(method, path, headers, body)

    assert response.status == (202 if body else 200)


# -- every route --------------------------------------------------------------------------------


def every_route(app):
    """Yield (method, path, pattern) of every route, its parameters filled in.

    Without the console's pages, which tests/integration/console/test_auth.py covers.
    """
    for route in app.router.routes():
        pattern = route.resource.canonical
        if pattern == "/" or pattern.startswith("/console"):
            continue
        path = re.sub(r"{\w+}", "x", pattern)
        for method in ("GET", "HEAD", "POST") if route.method == "*" else (route.method,):
            yield method, path, pattern


OPEN = {
    "/webhooks/ingest",
    "/webhooks/ingest/batch",
    "/webhooks/ingest/{source}",
    "/healthz",
    "/readyz",
}


async def assert_all_guarded_but(public, ask, status):
    """Ask every route as a foreign client: only those in `public` may not refuse with `status`."""
    found = {}
    for method, path, pattern in every_route(ask.app):
        answer = await ask(method, path, FORWARDED[0])
        found[method, pattern] = answer.status
        if pattern not in public:
            assert answer.status == status, (method, pattern)
            assert method == "HEAD" or await code(answer) == "operators_only", (method, pattern)
    guarded = {route for route, found_ in found.items() if found_ == status}
    # Ingest asks for a signature, with a code of its own.
    assert {pattern for _, pattern in set(found) - guarded} <= public
    assert {pattern for _, pattern in guarded} - {"/webhooks/ingest", "/webhooks/ingest/batch"} == {
        pattern for _, pattern in found
    } - public
    assert len(found) > 15


@pytest.mark.parametrize("changes", [{}, {"WDS_OPERATOR_TOKEN": TOKEN}], ids=["none", "token"])
@pytest.mark.parametrize("metrics", ["true", "false"])
async def test_guard_covers_every_route_that_is_not_public(serving, changes, metrics):
    public = OPEN | {"/metrics"} if metrics == "true" else OPEN
    async with serving(**changes, WDS_METRICS_OPEN=metrics) as ask:
        await assert_all_guarded_but(public, ask, 401 if changes else 403)


@pytest.mark.parametrize("leak", ["/webhooks/search", "/docs", "/webhooks/events/{id}/replay"])
async def test_guard_control_finds_a_route_listed_as_public_by_mistake(serving, monkeypatch, leak):
    monkeypatch.setitem(Guard.__init__.__kwdefaults__, "public", PUBLIC | {leak})
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        with pytest.raises(AssertionError, match=re.escape(leak)):
            await assert_all_guarded_but(OPEN | {"/metrics"}, ask, 401)


async def test_monitoring_app_guards_the_metrics_unless_they_are_open(engines):
    for value, status in [("true", 200), ("false", 401)]:
        settings = make_settings(engines, WDS_OPERATOR_TOKEN=TOKEN, WDS_METRICS_OPEN=value)
        app = monitoring_app({}, Guard(settings).middleware)
        async with listening(app, "127.0.0.1", 0) as port, aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
                assert response.status == status
            async with session.get(f"http://127.0.0.1:{port}/healthz") as response:
                assert response.status == 200


# -- clients on this machine --------------------------------------------------------------------


@pytest.mark.parametrize(("host", "status"), HOSTS.items(), ids=ascii)
async def test_host_header_must_name_this_machine_where_no_token_is_set(serving, host, status):
    """A page in a local browser may point its own name at 127.0.0.1."""
    async with serving() as ask:
        assert (await ask("GET", f"/webhooks/events/{EVENT.id}", {"Host": host})).status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "10.1.2.3:8000"}, 200),
        ({"Host": "[fd00::1]:8000"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "ingest:8000"}, 200),
        ({"Host": "wds.corp.example"}, 200),
        ({"Host": "WDS.corp.example.:8000"}, 200),
        ({"Host": "ingest", "X-Forwarded-Host": "wds.corp.example, 10.0.0.1"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "wds.corp.example.evil.example"}, 403),
        ({"Host": "x.wds.corp.example"}, 403),
        ({"Host": "10.1.2.3.evil.example"}, 403),
        ({"Host": "ingest", "X-Forwarded-Host": "evil.example"}, 403),
        ({"Host": "evil.example", "X-Forwarded-Host": "wds.corp.example"}, 403),
        ({"Host": "ingest", "X-Forwarded-Host": "10.0.0.1, evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "[::1"}, 403),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/console", "/webhooks/search"])
async def test_operator_open_answers_only_hosts_that_no_stranger_can_own(
    serving, path, headers, status
):
    """A page in an operator's browser may point its own name at the service's address."""
    before = refusals("foreign_host")
    changes = {"WDS_OPERATOR_OPEN": "true", "WDS_OPERATOR_HOSTS": "WDS.corp.example:443 a.b"}
    async with serving(**changes) as ask:
        answer = await ask("GET" if path == "/console" else "POST", path, headers)
        assert answer.status == status
        assert refusals("foreign_host") - before == (status == 403)
        if status == 403:
            assert "WDS_OPERATOR_HOSTS" in await answer.text()
        ingested = await ask("POST", "/webhooks/ingest", {**headers, **signed(b"{}")}, b"{}")
        assert ingested.status == 202


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "own"}, 200),
    ],
    ids=str,
)
async def test_foreign_page_in_a_local_browser_is_refused(serving, headers, status):
    async with serving() as ask:
        if headers.get("Origin") == "own":
            headers = {**headers, "Origin": ask.origin}
        answer = await ask("POST", "/webhooks/search", {**headers, "Content-Type": "text/plain"})
        assert answer.status == status
        if status == 403:
            assert "WDS_OPERATOR_TOKEN" in (await answer.json())["error"]["message"]


async def test_operator_refusal_says_which_setting_helps(serving):
    async with serving() as ask:
        message = (await (await ask("POST", "/webhooks/search", FORWARDED[0])).json())["error"]
        assert "WDS_OPERATOR_TOKEN" in message["message"]
        assert "WDS_OPERATOR_OPEN=true" in message["message"]
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        message = (await (await ask("POST", "/webhooks/search")).json())["error"]["message"]
        assert "WDS_OPERATOR_TOKEN" in message and TOKEN not in message


# -- wrong tokens ------------------------------------------------------------------------------


def refusals(reason):
    return REGISTRY.get_sample_value("wds_operator_refusals_total", {"reason": reason}) or 0


async def test_wrong_tokens_are_counted_and_then_refused_without_comparison(serving):
    before = {name: refusals(name) for name in ("wrong_token", "no_token", "too_many_failures")}
    wrong, right = ({"Authorization": f"Bearer {token}"} for token in ("guess", TOKEN))
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        for _ in range(3):
            assert (await ask("POST", "/webhooks/search")).status == 401
        for _ in range(BURST):
            assert (await ask("POST", "/webhooks/search", right)).status == 200
            assert (await ask("POST", "/webhooks/search", wrong)).status == 401
        for headers in (wrong, right):
            answer = await ask("POST", "/webhooks/search", headers)
            assert (answer.status, await code(answer)) == (429, "too_many_failures")
            assert 1 <= int(answer.headers["Retry-After"]) <= REFILL_S
        # A request without a token does not count as a guess.
        assert (await ask("POST", "/webhooks/search")).status == 401
        assert (await ask("GET", "/healthz")).status == 200
    counted = {name: refusals(name) - before[name] for name in before}
    assert counted == {"wrong_token": BURST, "no_token": 4, "too_many_failures": 2}


async def test_throttle_separates_the_clients_behind_a_proxy(serving):
    def bearer(token, client):
        return {"Authorization": f"Bearer {token}", "X-Forwarded-For": f"203.0.113.9, {client}"}

    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        for _ in range(BURST):
            answer = await ask("POST", "/webhooks/search", bearer("guess", "198.51.100.1"))
            assert answer.status == 401
        for token in ("guess", TOKEN):
            answer = await ask("POST", "/webhooks/search", bearer(token, "198.51.100.1"))
            assert answer.status == 429
        answer = await ask("POST", "/webhooks/search", bearer(TOKEN, "198.51.100.2"))
        assert answer.status == 200


async def test_throttle_stops_a_client_that_invents_forwarded_clients(serving):
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        statuses = []
        for number in range(BURST_OF_PROXY + 1):
            made_up = {"X-Forwarded-For": f"198.51.100.{number}"}
            guess = {"Authorization": "Bearer guess", **made_up}
            statuses.append((await ask("POST", "/webhooks/search", guess)).status)
    assert statuses == [401] * BURST_OF_PROXY + [429]


def test_check_token_compares_digests_of_equal_length(monkeypatch):
    compared = []

    def spy(one, other):
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr("wds.web.operator_access.hmac.compare_digest", spy)
    assert _equal("token", "token")
    assert not _equal("t", "token")
    assert not _equal("", "token")
    assert not _equal("token" * 1000, "token")
    assert compared == [(32, 32)] * 4
