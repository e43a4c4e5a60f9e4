"""No page of another site can act through a browser: cross-site requests and forged forms."""

from __future__ import annotations

from collections import Counter

import pytest
from prometheus_client import REGISTRY

from tests.integration.console.logins import EVENT, EVENT_PATH, TOKEN, console_routes, log_in

CROSS_SITE = [
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1.evil.example"},
    {"Origin": "http://["},
    {"Sec_Fetch_Site": "cross-site", "Origin": "http://127.0.0.1"},
]
WITH_AND_WITHOUT_TOKEN = pytest.mark.parametrize(
    "changes", [{}, {"WDS_OPERATOR_TOKEN": TOKEN}], ids=["local", "token"]
)


async def cookie_for(ask, changes):
    return await log_in(ask) if changes else (await ask("/console")).cookie


async def submit_replay(ask, cookie, **headers):
    """Submit the replay form with some fields or headers changed; return the answer's status."""
    fields = headers.pop("fields", {})
    page = await ask(f"{EVENT_PATH}/replay", cookie=cookie)
    data = {"form_token": page.form_token, "request_id": "r1", **fields}
    return (await ask(f"{EVENT_PATH}/replay", data=data, cookie=cookie, **headers)).status


@WITH_AND_WITHOUT_TOKEN
@pytest.mark.parametrize("headers", CROSS_SITE, ids=str)
async def test_form_from_another_site_does_nothing(serve, db, changes, headers):
    async with serve(**changes) as ask:
        cookie = await cookie_for(ask, changes)
        await db.events.update_one(
            {}, {"$set": {"status": "FAILED_PERMANENTLY"}, "$unset": {"next_attempt_at": ""}}
        )
        assert await submit_replay(ask, cookie, **headers) == 403
        assert not await db.events.count_documents({"history": {"$exists": True}})


@WITH_AND_WITHOUT_TOKEN
async def test_control_form_from_the_console_takes_effect(serve, db, changes):
    async with serve(**changes) as ask:
        cookie = await cookie_for(ask, changes)
        await db.events.update_one(
            {}, {"$set": {"status": "FAILED_PERMANENTLY"}, "$unset": {"next_attempt_at": ""}}
        )
        origin = {"Origin": ask.origin, "Sec_Fetch_Site": "same-origin"}
        assert await submit_replay(ask, cookie, **origin) == 303
        assert await db.events.count_documents({"history": {"$exists": True}})


@WITH_AND_WITHOUT_TOKEN
@pytest.mark.parametrize("token", ["", "0" * 64, "ž", None])
async def test_form_without_the_sessions_form_token_does_nothing(serve, db, changes, token):
    async with serve(**changes) as ask:
        cookie = await cookie_for(ask, changes)
        if token is None:
            other = await cookie_for(ask, changes)
            token = (await ask(f"{EVENT_PATH}/replay", cookie=other)).form_token
        assert await submit_replay(ask, cookie, fields={"form_token": token}) == 403
        assert not await db.events.count_documents({"history": {"$exists": True}})


async def test_form_of_an_ended_session_does_nothing(serve, db):
    async with serve() as ask:
        token = (await ask(f"{EVENT_PATH}/replay")).form_token
        answer = await ask(f"{EVENT_PATH}/replay", data={"form_token": token})
        assert answer.status == 403
        assert "another session" in answer.text
        assert not await db.events.count_documents({"history": {"$exists": True}})


async def test_form_routes_all_require_the_form_token(serve):
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        cookie = await log_in(ask)
        posts = {path for method, _, path in console_routes(ask.app) if method == "POST"}
        for path in posts - {"/console/login"}:
            assert (await ask(path, data={"request_id": "r"}, cookie=cookie)).status == 403, path
        assert len(posts) >= 6


async def test_refusals_of_the_console_are_counted_by_reason(serve):
    def counts():
        reasons = ("cross_site", "stale_form", "no_session", "wrong_token")
        total = "wds_operator_refusals_total"
        return Counter(
            {each: REGISTRY.get_sample_value(total, {"reason": each}) or 0 for each in reasons}
        )

    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        cookie = await log_in(ask)
        before = counts()
        assert await submit_replay(ask, cookie, **CROSS_SITE[0]) == 403
        login = await ask("/console/login", data={"token": TOKEN}, **CROSS_SITE[0])
        assert login.status == 403
        assert await submit_replay(ask, cookie, fields={"form_token": "0" * 64}) == 403
        assert (await ask(f"{EVENT_PATH}/replay", data={})).status == 401
        assert (await ask("/console/login", data={"token": "wrong"})).status == 401
    assert counts() - before == {
        "cross_site": 2,
        "stale_form": 1,
        "no_session": 1,
        "wrong_token": 1,
    }


@pytest.mark.parametrize("headers", CROSS_SITE[:3], ids=str)
async def test_login_form_from_another_site_does_nothing(serve, headers):
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as ask:
        answer = await ask("/console/login", data={"token": TOKEN}, **headers)
        assert (answer.status, answer.cookie) == (403, "")


async def test_host_name_of_another_site_opens_nothing(serve):
    async with serve() as ask:
        page = await ask("/console", Host="evil.example")
        assert page.status == 403
        assert EVENT.id not in page.text


@WITH_AND_WITHOUT_TOKEN
async def test_link_on_another_site_opens_the_interstitial_page(serve, changes):
    async with serve(**changes) as ask:
        link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "document"}
        page = await ask("/console?range=all&event_type=%22%3E", **link)
        assert page.status == 200
        assert 'content="0; url=/console?range=all&amp;event_type=%22%3E"' in page.text
        assert EVENT.id not in page.text


async def test_cross_site_frame_or_fetch_is_refused(serve):
    async with serve() as ask:
        for kind in ("iframe", "empty", "image", "script"):
            answer = await ask("/console", Sec_Fetch_Site="cross-site", Sec_Fetch_Dest=kind)
            assert answer.status == 403
