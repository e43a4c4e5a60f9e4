"""Hostile text in a real browser: no script runs, nothing loads, no policy is violated."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from markupsafe import Markup

from tests import history, hostile
from tests.browser.actions import open_all
from tests.integration.console.hostile_documents import bulk_action, fleet, hostile_event
from tests.support import make_settings, new_event
from wds.console import templating
from wds.ingest import create_app
from wds.web.server import listening

ARMED = """
for (const name of ["alert", "confirm", "prompt", "print", "open"])
  window[name] = () => { window.ran = (window.ran || 0) + 1; };
addEventListener("securitypolicyviolation", () => { window.ran = (window.ran || 0) + 1; });
"""


@pytest.fixture
async def hostile_events(db, store):  # noqa: ARG001 - the store makes the indexes
    now = history.utc_now()
    documents = [hostile_event(text, now) for text in hostile.TEXTS]
    await db.events.insert_many(documents)
    await db.bulk_actions.insert_many([bulk_action(text, now) for text in hostile.TEXTS])
    replicas = [fleet(text, now)["replicas"][0] for text in hostile.TEXTS]
    await db.fleet.insert_one({"_id": "fleet", "retired": {}, "replicas": replicas})
    return documents


async def check_harmless(page, url, texts):
    """Open a page with all its details, and check that it shows each of `texts` as text only."""
    requested = []
    page.on("request", lambda request: requested.append(request.url))
    await page.goto(url)
    await open_all(page)
    assert await page.evaluate("window.ran || 0") == 0
    origin = "/".join(url.split("/")[:3])
    assert [each for each in requested if not each.startswith(origin)] == []
    foreign = "iframe, object, embed, base, style, template, img, math, svg script, [onload]"
    assert await page.locator(foreign).count() == 0
    shown = await page.evaluate("document.body.innerText")
    for text in texts:
        if text.isprintable() and "\n" not in text:
            assert text in shown


async def test_event_list_of_hostile_events_is_harmless(open_page, url, hostile_events):
    assert len(hostile_events) >= 25
    page = await open_page()
    await page.add_init_script(ARMED)
    await check_harmless(page, f"{url}/console?range=all&limit=200", [])
    await check_harmless(page, f"{url}/console/actions", [])


@pytest.mark.parametrize("start", range(0, len(hostile.TEXTS), 7))
async def test_event_pages_of_hostile_events_are_harmless(open_page, url, hostile_events, start):
    page = await open_page()
    await page.add_init_script(ARMED)
    for event, text in list(zip(hostile_events, hostile.TEXTS, strict=True))[start : start + 7]:
        where = f"{url}/console/events/{event['_id']}"
        await check_harmless(page, where, [text])
        await check_harmless(page, f"{where}/replay", [])
        await check_harmless(page, f"{url}/console?range=all&event_type={quote(text)}", [])
        await check_harmless(page, f"{url}/console?colour={quote(text)}&{quote(text)}=1", [])
        await check_harmless(page, f"{url}/console/find?q={quote(text)}", [])
        await check_harmless(page, f"{url}/console/actions/{quote(text, safe='')}", [])


async def test_payload_opened_by_itself_is_downloaded(open_page, url, store, db):
    event = new_event(json.dumps({"a": "<script>alert(1)</script>"}).encode())
    await store.writer.insert([event])
    assert await db.events.count_documents({}) == 1
    page = await open_page()
    await page.add_init_script(ARMED)
    where = f"{url}/console/events/{event.id}/payload"
    await page.goto(f"{url}/console")
    async with page.expect_download():
        await page.evaluate("url => { location.href = url; }", where)
    assert await page.evaluate("window.ran || 0") == 0


async def test_control_hostile_text_in_an_unescaped_filter_is_found(
    open_page, engines, store, db, monkeypatch
):
    monkeypatch.setitem(templating.FILTERS, "escape_invisible", Markup)
    event = hostile_event("<img src=x onerror=alert(1)>", history.utc_now())
    await db.events.insert_one(event)
    async with listening(create_app(make_settings(engines), store), "127.0.0.1", 0) as port:
        page = await open_page(bypass_csp=False)
        await page.add_init_script(ARMED)
        with pytest.raises(AssertionError):
            await check_harmless(page, f"http://127.0.0.1:{port}/console/events/{event['_id']}", [])
        open_page.forgive()
