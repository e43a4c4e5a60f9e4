"""Hostile bytes in a real browser: nothing runs, nothing loads, no policy is broken."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from markupsafe import Markup

from tests import history, hostile
from tests.browser.test_pages import open_all
from tests.integration.test_console import bulk, fleet, hostile_event
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
async def loaded(db, store):  # noqa: ARG001 - the store makes the indexes
    now = history.utc_now()
    documents = [hostile_event(text, now) for text in hostile.TEXTS]
    await db.events.insert_many(documents)
    await db.bulk_actions.insert_many([bulk(text, now) for text in hostile.TEXTS])
    everyone = [fleet(text, now)["replicas"][0] for text in hostile.TEXTS]
    await db.fleet.insert_one({"_id": "fleet", "retired": {}, "replicas": everyone})
    return documents


async def looked_at(page, address, texts):
    """Open a page, everything on it, and see that each of `texts` is there as text only."""
    elsewhere = []
    page.on("request", lambda request: elsewhere.append(request.url))
    await page.goto(address)
    await open_all(page)
    assert await page.evaluate("window.ran || 0") == 0
    origin = "/".join(address.split("/")[:3])
    assert [url for url in elsewhere if not url.startswith(origin)] == []
    foreign = "iframe, object, embed, base, style, template, img, math, svg script, [onload]"
    assert await page.locator(foreign).count() == 0
    shown = await page.evaluate("document.body.innerText")
    for text in texts:
        if text.isprintable() and "\n" not in text:
            assert text in shown


async def test_a_list_of_hostile_events_is_a_list(open_page, url, loaded):
    assert len(loaded) >= 25
    page = await open_page()
    await page.add_init_script(ARMED)
    await looked_at(page, f"{url}/console?range=all&limit=200", [])
    await looked_at(page, f"{url}/console/actions", [])


@pytest.mark.parametrize("place", range(0, len(hostile.TEXTS), 7))
async def test_hostile_events_are_shown_and_do_nothing(open_page, url, loaded, place):
    page = await open_page()
    await page.add_init_script(ARMED)
    for event, text in list(zip(loaded, hostile.TEXTS, strict=True))[place : place + 7]:
        where = f"{url}/console/events/{event['_id']}"
        await looked_at(page, where, [text])
        await looked_at(page, f"{where}/replay", [])
        await looked_at(page, f"{url}/console?range=all&event_type={quote(text)}", [])
        await looked_at(page, f"{url}/console?colour={quote(text)}&{quote(text)}=1", [])
        await looked_at(page, f"{url}/console/find?q={quote(text)}", [])
        await looked_at(page, f"{url}/console/actions/{quote(text, safe='')}", [])


async def test_a_payload_opened_by_itself_is_no_page(open_page, url, store, db):

    event = new_event(json.dumps({"a": "<script>alert(1)</script>"}).encode())
    await store.writer.insert([event])
    assert await db.events.count_documents({}) == 1
    page = await open_page()
    await page.add_init_script(ARMED)
    where = f"{url}/console/events/{event.id}/payload"
    await page.goto(f"{url}/console")
    async with page.expect_download():
        await page.evaluate("address => { location.href = address; }", where)
    assert await page.evaluate("window.ran || 0") == 0


async def test_control_a_template_that_trusts_text_is_found(
    open_page, engines, store, db, monkeypatch
):
    monkeypatch.setitem(templating._FILTERS, "visible", Markup)
    event = hostile_event("<img src=x onerror=alert(1)>", history.utc_now())
    await db.events.insert_one(event)
    async with listening(create_app(make_settings(engines), store), "127.0.0.1", 0) as port:
        page = await open_page(bypass_csp=False)
        await page.add_init_script(ARMED)
        with pytest.raises(AssertionError):
            await looked_at(page, f"http://127.0.0.1:{port}/console/events/{event['_id']}", [])
        open_page.forgive()
