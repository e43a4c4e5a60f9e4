"""Login and logout, sessions, and which pages open without one."""

from __future__ import annotations

import re
import time
from urllib.parse import quote

import pytest

from tests.integration.console.logins import EVENT, EVENT_PATH, TOKEN, console_routes, log_in
from wds.console.sessions import LIFETIME_S, SessionSigner
from wds.domain.errors import StoreUnavailableError
from wds.storage.revoked_sessions import RevokedSessions
from wds.web.failure_throttle import BURST

PUBLIC_ROUTES = {"/", "/console/login", "/console/static/{name}"}
"""Routes that need no session: a redirect, the login, and files that are the same for everybody."""


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
@pytest.mark.parametrize("path", ["/console/login", f"{EVENT_PATH}/replay"])
async def test_form_that_cannot_be_read_is_refused(serve, path, kind, data, status):
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        cookie = await log_in(ask)
        answer = await ask(path, data=data, cookie=cookie, Content_Type=kind)
    expected = 403 if status == 401 and path != "/console/login" else status
    assert answer.status == expected


async def test_console_without_a_session_redirects_to_login_and_does_nothing(serve):
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        seen = set()
        for method, pattern, path in console_routes(ask.app):
            if pattern in PUBLIC_ROUTES:
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
async def test_console_without_a_token_refuses_forwarded_clients(serve, changes):
    async with serve(**changes) as ask:
        for method, pattern, path in console_routes(ask.app):
            if pattern not in PUBLIC_ROUTES:
                answer = await ask(path, method=method, X_Forwarded_For="10.0.0.1")
                assert answer.status == 403, (method, pattern)


async def test_console_is_open_to_all_with_operator_open(serve):
    async with serve(WDS_OPERATOR_OPEN="true") as ask:
        assert (await ask("/console", X_Forwarded_For="10.0.0.1")).status == 200


# -- login -----------------------------------------------------------------------------------


async def test_login_opens_the_console_and_keeps_the_token_out_of_the_cookie(serve):
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        cookie = await log_in(ask)
        assert TOKEN not in cookie
        assert re.fullmatch(
            rf"wds_session=[^;]+; HttpOnly; Max-Age={LIFETIME_S}; Path=/; SameSite=Strict", cookie
        )
        page = await ask(EVENT_PATH, cookie=cookie)
        assert page.status == 200
        assert EVENT.id in page.text
        assert TOKEN not in page.text


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), "žluť"])
async def test_login_with_a_wrong_token_is_refused(serve, token):
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        answer = await ask("/console/login", data={"token": token})
        assert answer.status == 401
        assert answer.cookie == ""
        assert "The token is wrong" in answer.text


async def test_login_throttles_wrong_tokens_together_with_the_api(serve):
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as ask:
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
async def test_login_over_https_sets_a_secure_cookie(serve, proto, name, secure):
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        cookie = await log_in(ask, X_Forwarded_Proto=proto)
        assert cookie.startswith(f"{name}=")
        assert ("Secure" in cookie) is secure
        page = await ask("/console", cookie=cookie, X_Forwarded_Proto=proto)
        assert page.status == 200


async def test_session_is_valid_at_every_replica_until_the_token_changes(serve):
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as one, serve(WDS_OPERATOR_TOKEN=TOKEN) as two:
        cookie = await log_in(one)
        assert (await two("/console", cookie=cookie)).status == 200
        async with serve(WDS_OPERATOR_TOKEN="another") as changed:
            assert (await changed("/console", cookie=cookie)).status == 303


async def test_session_that_expired_leads_to_the_login(serve):
    signer = SessionSigner(TOKEN, "operator")
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        expired = signer.issue(1_000_000_000, bytes(16))
        assert (await ask("/console", cookie=f"wds_session={expired.text}")).status == 303


async def test_session_of_a_service_without_a_token_opens_none_with_one(serve):
    async with serve() as ask, serve(WDS_OPERATOR_TOKEN=TOKEN) as guarded:
        cookie = (await ask("/console")).cookie
        assert cookie.startswith("wds_session=")
        assert (await guarded("/console", cookie=cookie)).status == 303


async def test_logout_deletes_the_cookie(serve):
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        cookie = await log_in(ask)
        page = await ask("/console", cookie=cookie)
        answer = await ask("/console/logout", data={"form_token": page.form_token}, cookie=cookie)
        assert (answer.status, answer.headers["Location"]) == (303, "/console/login")
        assert answer.cookie.startswith('wds_session="";')
        assert "Max-Age=0" in answer.cookie


async def test_logout_ends_the_session_at_every_replica(serve, db):
    """A copy of the cookie is no longer accepted either. Other sessions of the operator go on."""
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as one, serve(WDS_OPERATOR_TOKEN=TOKEN) as two:
        cookie, other = await log_in(one), await log_in(one)
        page = await two("/console", cookie=cookie)
        answer = await one("/console/logout", data={"form_token": page.form_token}, cookie=cookie)
        assert answer.status == 303
        for ask in (one, two):
            assert (await ask("/console", cookie=cookie)).status == 303
            assert (await ask("/console/login", cookie=cookie)).status == 200
            assert (await ask(f"/webhooks/events/{EVENT.id}", cookie=cookie)).status == 401
            data = {"form_token": page.form_token, "request_id": "r1"}
            assert (await ask(f"{EVENT_PATH}/replay", data=data, cookie=cookie)).status == 401
            assert (await ask("/console", cookie=other)).status == 200
    [record] = await db.logouts.find().to_list(None)
    text = cookie.partition("=")[2].partition(";")[0]
    assert not [part for part in text.split(".")[1:] if part in str(record)]
    kept_s = record["forget_at"].timestamp() - time.time()
    assert kept_s > LIFETIME_S
    index = (await db.logouts.index_information())["forget"]
    assert (index["key"], index["expireAfterSeconds"]) == ([("forget_at", 1)], 0)


async def test_session_opens_nothing_while_revocation_cannot_be_checked(serve, monkeypatch):
    async def unavailable(*_):
        raise StoreUnavailableError

    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        cookie = await log_in(ask)
        page = await ask("/console", cookie=cookie)
        for name in ("has", "end"):
            with monkeypatch.context() as broken:
                broken.setattr(RevokedSessions, name, unavailable)
                data = {"form_token": page.form_token}
                assert (await ask("/console/logout", data=data, cookie=cookie)).status == 503
                if name == "has":
                    assert (await ask("/console", cookie=cookie)).status == 503
                    assert (await ask("/docs", cookie=cookie)).status == 503
        assert (await ask("/console", cookie=cookie)).status == 200


async def test_session_allows_reading_the_api_and_no_changes(serve):
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        cookie = await log_in(ask)
        assert (await ask("/docs", cookie=cookie)).status == 200
        assert (await ask(f"/webhooks/events/{EVENT.id}", cookie=cookie)).status == 200
        assert (await ask("/webhooks/search", data=b"{}", cookie=cookie)).status == 401
        answer = await ask(f"/webhooks/events/{EVENT.id}/replay", data=b"{}", cookie=cookie)
        assert answer.status == 401


TARGETS = {
    "/console": "/console",
    "/console?status=DELIVERED&range=all": "/console?status=DELIVERED&range=all",
    EVENT_PATH: EVENT_PATH,
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


@pytest.mark.parametrize(("next_url", "target"), TARGETS.items())
async def test_login_redirects_only_into_the_console(serve, next_url, target):
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        page = await ask(f"/console/login?next={quote(next_url)}")
        assert page.status == 200
        answer = await ask("/console/login", data={"token": TOKEN, "next": next_url})
        assert (answer.status, answer.headers["Location"]) == (303, target)


async def test_login_redirects_back_to_the_requested_page(serve):
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        url = "/console?status=DELIVERED&event_type=a%26b"
        login = await ask((await ask(url)).headers["Location"])
        assert f'name="next" value="{url.replace("&", "&amp;")}"' in login.text
