"""Who gets into the console, with what, and that no foreign page can act through a browser."""

from __future__ import annotations

import re
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote

import aiohttp
import pytest
from prometheus_client import REGISTRY

from tests.support import make_settings, new_event
from wds.console.sessions import LIFETIME_S, Sessions
from wds.domain.errors import StoreUnavailableError
from wds.ingest import create_app
from wds.storage.revoked_sessions import RevokedSessions
from wds.web.failure_throttle import BURST
from wds.web.server import listening

TOKEN = "the-operators-token"
EVENT = new_event(b'{"n":1}', key="k")
ONE = f"/console/events/{EVENT.id}"
FREE = {"/", "/console/login", "/console/static/{name}"}
"""What needs no session: it leads on, logs in, or looks the same to everybody."""


@dataclass
class Answer:
    status: int
    headers: object
    text: str

    @property
    def cookie(self):
        return self.headers.get("Set-Cookie", "")

    @property
    def form_token(self):
        return re.search(r'name="form_token" value="([0-9a-f]{64})"', self.text)[1]


@pytest.fixture
def serving(engines, store, db):  # noqa: ARG001 - `db` drops the database
    """Return a function that serves the app under given settings and gives an `ask`."""

    @asynccontextmanager
    async def run(**changes):
        app = create_app(make_settings(engines, **changes), store)
        await store.writer.insert([EVENT])
        async with (
            listening(app, "127.0.0.1", 0) as port,
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
        ):

            async def ask(path, *, method=None, data=None, cookie=None, **headers):
                sent = {name.replace("_", "-"): value for name, value in headers.items()}
                if cookie is not None:
                    sent["Cookie"] = cookie.partition(";")[0]
                async with session.request(
                    method or ("GET" if data is None else "POST"),
                    f"http://127.0.0.1:{port}{path}",
                    data=data,
                    headers=sent,
                    allow_redirects=False,
                ) as answer:
                    return Answer(answer.status, answer.headers, await answer.text())

            ask.app, ask.origin = app, f"http://127.0.0.1:{port}"
            yield ask

    return run


async def log_in(ask, **headers):
    answer = await ask("/console/login", data={"token": TOKEN}, **headers)
    assert answer.status == 303
    return answer.cookie


async def replay(ask, cookie, **headers):
    """Send the form of the console's replay page, with changes; return the answer's status."""
    fields = headers.pop("fields", {})
    page = await ask(f"{ONE}/replay", cookie=cookie)
    data = {"form_token": page.form_token, "request_id": "r1", **fields}
    return (await ask(f"{ONE}/replay", data=data, cookie=cookie, **headers)).status


# -- the sweep -------------------------------------------------------------------------------


def console_routes(app):
    for route in app.router.routes():
        pattern = route.resource.canonical
        if pattern == "/" or pattern.startswith("/console"):
            yield route.method, pattern, re.sub(r"{\w+}", "x", pattern)


@pytest.mark.parametrize(
    ("kind", "data", "status"),
    [
        ("application/x-www-form-urlencoded; charset=none-such", b"token=x", 400),
        ("application/x-www-form-urlencoded", b"token=\xff\xfe", 400),
        ("multipart/form-data", b"x", 415),
        ("multipart/form-data; boundary=x", b"--x\r\nbroken", 415),
        ("text/plain", b"token=x", 401),
    ],
)
@pytest.mark.parametrize("path", ["/console/login", f"{ONE}/replay"])
async def test_a_form_that_cannot_be_read_is_refused(serving, path, kind, data, status):
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        cookie = await log_in(ask)
        answer = await ask(path, data=data, cookie=cookie, Content_Type=kind)
    expected = 403 if status == 401 and path != "/console/login" else status
    assert answer.status == expected


async def test_without_a_session_every_page_leads_to_the_login_and_nothing_is_done(serving):
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        seen = set()
        for method, pattern, path in console_routes(ask.app):
            if pattern in FREE:
                continue
            answer = await ask(path, method=method)
            seen.add((method, pattern))
            if method == "GET":
                assert answer.status == 303, pattern
                assert answer.headers["Location"].startswith("/console/login")
            else:
                assert answer.status == 401, (method, pattern)
            assert EVENT.id not in answer.text
    assert len(seen) > 20


@pytest.mark.parametrize("changes", [{}, {"WDS_OPERATOR_OPEN": "false"}], ids=["unset", "closed"])
async def test_without_a_token_set_a_forwarded_client_gets_nothing(serving, changes):
    async with serving(**changes) as ask:
        for method, pattern, path in console_routes(ask.app):
            if pattern not in FREE:
                answer = await ask(path, method=method, X_Forwarded_For="10.0.0.1")
                assert answer.status == 403, (method, pattern)


async def test_the_console_is_open_where_the_settings_open_it(serving):
    async with serving(WDS_OPERATOR_OPEN="true") as ask:
        assert (await ask("/console", X_Forwarded_For="10.0.0.1")).status == 200


# -- login -----------------------------------------------------------------------------------


async def test_the_token_opens_the_console_and_is_in_no_cookie(serving):
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        cookie = await log_in(ask)
        assert TOKEN not in cookie
        assert re.fullmatch(
            rf"wds_session=[^;]+; HttpOnly; Max-Age={LIFETIME_S}; Path=/; SameSite=Strict", cookie
        )
        page = await ask(ONE, cookie=cookie)
        assert page.status == 200
        assert EVENT.id in page.text
        assert TOKEN not in page.text


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), "žluť"])
async def test_a_wrong_token_opens_nothing(serving, token):
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        answer = await ask("/console/login", data={"token": token})
        assert answer.status == 401
        assert answer.cookie == ""
        assert "This is not the token" in answer.text


async def test_wrong_tokens_are_slowed_and_count_together_with_the_apis(serving):
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        for number in range(BURST):
            if number % 2:
                answer = await ask("/console/login", data={"token": "wrong"})
            else:
                answer = await ask("/docs", Authorization="Bearer wrong")
            assert answer.status == 401
        answer = await ask("/console/login", data={"token": TOKEN})
        assert (answer.status, answer.cookie) == (429, "")
        assert int(answer.headers["Retry-After"]) >= 1
        assert "Try again in" in answer.text


@pytest.mark.parametrize(
    ("proto", "name", "secure"),
    [
        ("https", "__Host-wds_session", True),
        ("https, http", "__Host-wds_session", True),
        ("http", "wds_session", False),
    ],
)
async def test_a_cookie_given_over_https_is_never_sent_without(serving, proto, name, secure):
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        cookie = await log_in(ask, X_Forwarded_Proto=proto)
        assert cookie.startswith(f"{name}=")
        assert ("Secure" in cookie) is secure
        page = await ask("/console", cookie=cookie, X_Forwarded_Proto=proto)
        assert page.status == 200


async def test_a_session_is_good_at_every_replica_until_the_token_changes(serving):
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as one, serving(WDS_OPERATOR_TOKEN=TOKEN) as two:
        cookie = await log_in(one)
        assert (await two("/console", cookie=cookie)).status == 200
        async with serving(WDS_OPERATOR_TOKEN="another") as changed:
            assert (await changed("/console", cookie=cookie)).status == 303


async def test_a_session_ends_by_itself(serving):
    sessions = Sessions(TOKEN, "operator")
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        over = sessions.begin(1_000_000_000, bytes(16))
        assert (await ask("/console", cookie=f"wds_session={over.text}")).status == 303


async def test_a_session_of_a_service_without_a_token_opens_none_with_one(serving):
    async with serving() as ask, serving(WDS_OPERATOR_TOKEN=TOKEN) as guarded:
        cookie = (await ask("/console")).cookie
        assert cookie.startswith("wds_session=")
        assert (await guarded("/console", cookie=cookie)).status == 303


async def test_logging_out_takes_the_cookie_away(serving):
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        cookie = await log_in(ask)
        page = await ask("/console", cookie=cookie)
        answer = await ask("/console/logout", data={"form_token": page.form_token}, cookie=cookie)
        assert (answer.status, answer.headers["Location"]) == (303, "/console/login")
        assert answer.cookie.startswith('wds_session="";')
        assert "Max-Age=0" in answer.cookie


async def test_a_session_that_was_logged_out_is_over_at_every_replica(serving, db):
    """Also for whoever has a copy of the cookie. Others of the same operator go on."""
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as one, serving(WDS_OPERATOR_TOKEN=TOKEN) as two:
        cookie, other = await log_in(one), await log_in(one)
        page = await two("/console", cookie=cookie)
        answer = await one("/console/logout", data={"form_token": page.form_token}, cookie=cookie)
        assert answer.status == 303
        for ask in (one, two):
            assert (await ask("/console", cookie=cookie)).status == 303
            assert (await ask("/console/login", cookie=cookie)).status == 200
            assert (await ask(f"/webhooks/events/{EVENT.id}", cookie=cookie)).status == 401
            data = {"form_token": page.form_token, "request_id": "r1"}
            assert (await ask(f"{ONE}/replay", data=data, cookie=cookie)).status == 401
            assert (await ask("/console", cookie=other)).status == 200
    [ended] = await db.logouts.find().to_list(None)
    text = cookie.partition("=")[2].partition(";")[0]
    assert not [part for part in text.split(".")[1:] if part in str(ended)]
    lasts = ended["forget_at"].timestamp() - time.time()
    assert lasts > LIFETIME_S
    index = (await db.logouts.index_information())["forget"]
    assert (index["key"], index["expireAfterSeconds"]) == ([("forget_at", 1)], 0)


async def test_while_nobody_can_tell_whether_a_session_was_ended_it_opens_nothing(
    serving, monkeypatch
):
    async def silence(*_):
        raise StoreUnavailableError

    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        cookie = await log_in(ask)
        page = await ask("/console", cookie=cookie)
        for name in ("has", "end"):
            with monkeypatch.context() as broken:
                broken.setattr(RevokedSessions, name, silence)
                data = {"form_token": page.form_token}
                assert (await ask("/console/logout", data=data, cookie=cookie)).status == 503
                if name == "has":
                    assert (await ask("/console", cookie=cookie)).status == 503
                    assert (await ask("/docs", cookie=cookie)).status == 503
        assert (await ask("/console", cookie=cookie)).status == 200


async def test_whoever_is_logged_in_may_read_the_api_and_no_more(serving):
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        cookie = await log_in(ask)
        assert (await ask("/docs", cookie=cookie)).status == 200
        assert (await ask(f"/webhooks/events/{EVENT.id}", cookie=cookie)).status == 200
        assert (await ask("/webhooks/search", data=b"{}", cookie=cookie)).status == 401
        answer = await ask(f"/webhooks/events/{EVENT.id}/replay", data=b"{}", cookie=cookie)
        assert answer.status == 401


LEADS = {
    "/console": "/console",
    "/console?status=DELIVERED&range=all": "/console?status=DELIVERED&range=all",
    ONE: ONE,
    "": "/console",
    "/": "/console",
    "//evil.example": "/console",
    "https://evil.example/console": "/console",
    "/console.evil": "/console",
    "/consoleevil": "/console",
    "/console/\\evil.example": "/console",
    "/console\r\nX-Evil: 1": "/console",
    "javascript:alert(1)": "/console",
    "/console/é": "/console",
}


@pytest.mark.parametrize(("wanted", "leads"), LEADS.items())
async def test_logging_in_leads_back_into_the_console_and_nowhere_else(serving, wanted, leads):
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        page = await ask(f"/console/login?next={quote(wanted)}")
        assert page.status == 200
        answer = await ask("/console/login", data={"token": TOKEN, "next": wanted})
        assert (answer.status, answer.headers["Location"]) == (303, leads)


async def test_a_page_asked_for_without_a_session_is_led_back_to(serving):
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        wanted = "/console?status=DELIVERED&event_type=a%26b"
        login = await ask((await ask(wanted)).headers["Location"])
        assert f'name="next" value="{wanted.replace("&", "&amp;")}"' in login.text


# -- foreign pages ---------------------------------------------------------------------------

FOREIGN = [
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1.evil.example"},
    {"Origin": "http://["},
    {"Sec_Fetch_Site": "cross-site", "Origin": "http://127.0.0.1"},
]
MODES = pytest.mark.parametrize(
    "changes", [{}, {"WDS_OPERATOR_TOKEN": TOKEN}], ids=["local", "token"]
)


async def cookie_for(ask, changes):
    return await log_in(ask) if changes else (await ask("/console")).cookie


@MODES
@pytest.mark.parametrize("headers", FOREIGN, ids=str)
async def test_a_form_sent_by_a_foreign_page_does_nothing(serving, db, changes, headers):
    async with serving(**changes) as ask:
        cookie = await cookie_for(ask, changes)
        await db.events.update_one(
            {}, {"$set": {"status": "FAILED_PERMANENTLY"}, "$unset": {"next_attempt_at": ""}}
        )
        assert await replay(ask, cookie, **headers) == 403
        assert not await db.events.count_documents({"history": {"$exists": True}})


@MODES
async def test_control_the_same_form_from_the_console_does_it(serving, db, changes):
    async with serving(**changes) as ask:
        cookie = await cookie_for(ask, changes)
        await db.events.update_one(
            {}, {"$set": {"status": "FAILED_PERMANENTLY"}, "$unset": {"next_attempt_at": ""}}
        )
        origin = {"Origin": ask.origin, "Sec_Fetch_Site": "same-origin"}
        assert await replay(ask, cookie, **origin) == 303
        assert await db.events.count_documents({"history": {"$exists": True}})


@MODES
@pytest.mark.parametrize("token", ["", "0" * 64, "ž", None])
async def test_a_form_without_the_sessions_token_does_nothing(serving, db, changes, token):
    async with serving(**changes) as ask:
        cookie = await cookie_for(ask, changes)
        if token is None:
            other = await cookie_for(ask, changes)
            token = (await ask(f"{ONE}/replay", cookie=other)).form_token
        assert await replay(ask, cookie, fields={"form_token": token}) == 403
        assert not await db.events.count_documents({"history": {"$exists": True}})


async def test_a_form_of_a_session_that_is_over_does_nothing(serving, db):
    async with serving() as ask:
        token = (await ask(f"{ONE}/replay")).form_token
        answer = await ask(f"{ONE}/replay", data={"form_token": token})
        assert answer.status == 403
        assert "another session" in answer.text
        assert not await db.events.count_documents({"history": {"$exists": True}})


async def test_every_form_of_the_console_is_guarded(serving):
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        cookie = await log_in(ask)
        posts = {path for method, _, path in console_routes(ask.app) if method == "POST"}
        for path in posts - {"/console/login"}:
            assert (await ask(path, data={"request_id": "r"}, cookie=cookie)).status == 403, path
        assert len(posts) >= 6


async def test_what_the_console_refuses_is_counted_by_its_reason(serving):
    def counts():
        reasons = ("cross_site", "stale_form", "no_session", "wrong_token")
        total = "wds_operator_refusals_total"
        return Counter(
            {each: REGISTRY.get_sample_value(total, {"reason": each}) or 0 for each in reasons}
        )

    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        cookie = await log_in(ask)
        before = counts()
        assert await replay(ask, cookie, **FOREIGN[0]) == 403
        foreign = await ask("/console/login", data={"token": TOKEN}, **FOREIGN[0])
        assert foreign.status == 403
        assert await replay(ask, cookie, fields={"form_token": "0" * 64}) == 403
        assert (await ask(f"{ONE}/replay", data={})).status == 401
        assert (await ask("/console/login", data={"token": "wrong"})).status == 401
    assert counts() - before == {
        "cross_site": 2,
        "stale_form": 1,
        "no_session": 1,
        "wrong_token": 1,
    }


@pytest.mark.parametrize("headers", FOREIGN[:3], ids=str)
async def test_a_foreign_page_can_log_nobody_in(serving, headers):
    async with serving(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        answer = await ask("/console/login", data={"token": TOKEN}, **headers)
        assert (answer.status, answer.cookie) == (403, "")


async def test_a_name_pointed_at_this_machine_opens_nothing(serving):
    async with serving() as ask:
        page = await ask("/console", Host="evil.example")
        assert page.status == 403
        assert EVENT.id not in page.text


@MODES
async def test_a_link_on_another_page_leads_in_by_way_of_a_page_of_ours(serving, changes):
    async with serving(**changes) as ask:
        came = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "document"}
        page = await ask("/console?range=all&event_type=%22%3E", **came)
        assert page.status == 200
        assert 'content="0; url=/console?range=all&amp;event_type=%22%3E"' in page.text
        assert EVENT.id not in page.text


async def test_a_page_inside_a_foreign_frame_or_fetch_is_refused(serving):
    async with serving() as ask:
        for kind in ("iframe", "empty", "image", "script"):
            answer = await ask("/console", Sec_Fetch_Site="cross-site", Sec_Fetch_Dest=kind)
            assert answer.status == 403
