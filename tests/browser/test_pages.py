"""The console in a real browser: by mouse, by keyboard, on a phone, without JavaScript."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import expect

from tests.browser.conftest import DESKTOP, PHONE
from tests.support import new_event
from wds.console.event_query import datetime_local
from wds.console.events import FILTER_FIELDS
from wds.domain.errors import StoreUnavailableError
from wds.storage.replicas import Replicas

TOKEN = "the-operators-token"
VIEWS = {
    "events": "/console",
    "filtered": "/console?status=FAILED_PERMANENTLY&event_type=push&range=all",
    "wrong filter": "/console?min_attempts=many",
    "nothing found": "/console?source=nobody",
    "event": "/console/events/{failed}",
    "waiting event": "/console/events/{waiting}",
    "replay": "/console/events/{failed}/replay",
    "cancel": "/console/events/{waiting}/cancel",
    "bulk replay": "/console/replay?range=all",
    "bulk cancel": "/console/cancel?range=all",
    "bulk actions": "/console/actions",
    "bulk action": "/console/actions/r1",
    "running bulk action": "/console/actions/r2",
    "not found": "/console/events/unknown",
}


def event_ids_by_name(stored_events):
    return {
        "failed": next(
            each["_id"] for each in stored_events if each["status"] == "FAILED_PERMANENTLY"
        ),
        "waiting": next(each["_id"] for each in stored_events if each["status"] == "DELIVERING"),
    }


@pytest.fixture
async def bulk_action(db, stored_events):
    """Insert a bulk action that was stopped, and one that another process works on."""
    stopped = {
        "_id": "r1",
        "action": "replay",
        "by": "ada",
        "remote": "127.0.0.1",
        "reason": "the receiver is back",
        "filters": '{"status": ["FAILED_PERMANENTLY"]}',
        "limit": None,
        "per_second": 1.5,
        "matched": 40,
        "examined": 20,
        "changed": 18,
        "state": "stopped",
        "started_at": stored_events[0]["received_at"],
        "finished_at": stored_events[0]["received_at"],
    }
    until = datetime(2199, 1, 1, tzinfo=UTC)
    running = {**stopped, "_id": "r2", "state": "running", "matched": None}
    running["lease"] = {"token": "t", "owner": "another", "until": until}
    del running["finished_at"]
    await db.bulk_actions.insert_many([stopped, running])


async def open_all(page):
    """Open all details elements."""
    closed = page.locator("details:not([open]) > summary")
    while await closed.count():
        await closed.first.click()


async def axe_violations(page):
    """Return the serious and critical violations that axe-core finds on a page."""
    found = await Axe().run(page)
    return [
        (each["id"], each["impact"], [node["html"] for node in each["nodes"]][:3])
        for each in found.response["violations"]
        if each["impact"] in {"serious", "critical"}
    ]


async def overflow_px(page):
    """Return by how many pixels a page is wider than its window."""
    return await page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


async def ids(page):
    links = page.locator("table.events a.id")
    return await links.evaluate_all("links => links.map(link => link.href.split('/').pop())")


# -- every view ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.usefixtures("bulk_action")
async def test_every_view_is_accessible_and_fits_in_both_schemes_and_sizes(
    open_page, url, stored_events, name
):
    address = url + VIEWS[name].format(**event_ids_by_name(stored_events))
    backgrounds = set()
    page = await open_page(address)
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        for viewport in (DESKTOP, PHONE):
            await page.set_viewport_size(viewport)
            await open_all(page)
            assert await axe_violations(page) == []
            assert await overflow_px(page) <= 0
            backgrounds.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


@pytest.mark.usefixtures("stored_events")
async def test_event_list_on_a_phone_hides_empty_cells(open_page, url):
    """There each cell is a line. A line without a value would only make the page longer."""
    page = await open_page(f"{url}/console?range=all&status=DELIVERED&limit=25", viewport=PHONE)
    row = page.locator("table.events tbody tr").first
    await expect(row.locator("td[data-label=Attempts]")).to_be_visible()
    await expect(row.locator("td[data-label='Next attempt']")).to_be_hidden()
    await page.set_viewport_size(DESKTOP)
    await expect(row.locator("td[data-label='Next attempt']")).to_be_visible()


async def test_control_axe_finds_a_missing_label(open_page, url):
    page = await open_page(f"{url}/console")
    await page.evaluate("document.querySelector('#find').labels[0].remove()")
    await page.evaluate("document.querySelector('#find').placeholder = ''")
    assert [each[0] for each in await axe_violations(page)] == ["label"]


async def test_root_opens_the_console(open_page, url):
    page = await open_page(url)
    await expect(page).to_have_title("Events · wds")
    assert page.url == f"{url}/console"


async def test_event_list_shows_totals_due_events_and_replicas(open_page, url, stored_events):
    page = await open_page(f"{url}/console?range=all")
    counts = Counter(each["status"] for each in stored_events)
    for name, status in (("Delivered", "DELIVERED"), ("Failed", "FAILED_PERMANENTLY")):
        await expect(page.get_by_role("link", name=re.compile(f"^{name} ")).first).to_contain_text(
            str(counts[status])
        )
    await expect(page.locator(".tile", has_text="Due now")).to_contain_text("oldest due for")
    await expect(page.get_by_role("row", name=re.compile("worker-2"))).to_contain_text("Silent")


async def test_status_tile_filters_and_unfilters(open_page, url, stored_events):
    page = await open_page(f"{url}/console?range=all&limit=200")
    failed = {each["_id"] for each in stored_events if each["status"] == "FAILED_PERMANENTLY"}
    tile = page.locator(".tile[data-status=FAILED_PERMANENTLY]")
    await tile.click()
    await expect(page).to_have_url(re.compile("status=FAILED_PERMANENTLY"))
    assert set(await ids(page)) == failed
    await tile.click()
    await expect(page).not_to_have_url(re.compile("status="))


async def test_histogram_bar_narrows_the_range(open_page, url, stored_events):
    page = await open_page(f"{url}/console?range=all&limit=200")
    bar = page.locator(".histogram a").nth(3)
    label = await bar.get_attribute("aria-label")
    await bar.click()
    await expect(page).to_have_url(re.compile("from=.*&to="))
    start, end = re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d", label)
    expected = {
        each["_id"]
        for each in stored_events
        if start <= f"{each['received_at']:%Y-%m-%d %H:%M}" < end
    }
    assert set(await ids(page)) == expected
    assert expected


async def fill_in(page, fields):
    """Fill in filter fields by their labels, as a user does, and apply them."""
    form = page.locator("#filters form")
    if not await form.is_visible():
        await page.locator("#filters > summary").click()
    for title, value in fields.items():
        field = form.get_by_label(title, exact=True)
        if await field.evaluate("field => field.tagName") == "SELECT":
            await field.select_option(value)
        elif await field.get_attribute("type") == "checkbox":
            await field.set_checked(bool(value))
        else:
            await field.fill(value)
    async with page.expect_navigation():
        await form.get_by_role("button", name="Apply filters").click()


@pytest.fixture
async def distinct_events(stored_events, db):
    """Give three events a source, destination or key of their own; return all, newest first."""
    for event, (name, value) in zip(stored_events, DISTINCT_FIELDS.items(), strict=False):
        event[name] = value
        await db.events.update_one({"_id": event["_id"]}, {"$set": {name: value}})
    return sorted(stored_events, key=lambda each: (each["received_at"], each["_id"]), reverse=True)


DISTINCT_FIELDS = {"source": "github", "destination": "archive", "idempotency_key": "order-17"}


async def test_filter_form_finds_what_each_field_says(open_page, url, distinct_events):
    newest = distinct_events
    some = newest[7]
    start, end = newest[90]["received_at"], newest[40]["received_at"]
    hour_ago = newest[0]["received_at"] - timedelta(hours=1)
    found = {
        "range": ({"Range": "1h"}, lambda each: each["received_at"] > hour_ago),
        "status": (
            {"Received": True, "Failed": True},
            lambda each: each["status"] in {"RECEIVED", "FAILED_PERMANENTLY"},
        ),
        "event_type": ({"Type": "push"}, lambda each: each["event_type"] == "push"),
        "id_prefix": (
            {"Event id starts with": some["_id"][:9]},
            lambda each: each["_id"][:9] == some["_id"][:9],
        ),
        "idempotency_key": (
            {"Idempotency key": "order-17"},
            lambda each: each.get("idempotency_key") == "order-17",
        ),
        "source": ({"Source": "github"}, lambda each: each["source"] == "github"),
        "destination": ({"Destination": "archive"}, lambda each: each["destination"] == "archive"),
        "min_attempts": ({"Minimum attempts": "3"}, lambda each: each["attempt_count"] >= 3),
        "last_status_code": (
            {"Last response (0: none)": "0"},
            lambda each: each.get("last_status_code") == 0,
        ),
        "from to": (
            {
                "Received from (UTC)": datetime_local(start),
                "Received before (UTC)": datetime_local(end),
                "Range": "",
            },
            lambda each: start <= each["received_at"] < end,
        ),
        "min_attempts event_type": (
            {"Type": "push", "Minimum attempts": "2"},
            lambda each: each["event_type"] == "push" and each["attempt_count"] >= 2,
        ),
    }
    page = await open_page(f"{url}/console?limit=200")
    before: dict[str, object] = {}
    for names, (fields, wanted) in found.items():
        await fill_in(page, {**dict.fromkeys(before, ""), "Range": "all", **fields})
        before = fields
        expected = [each["_id"] for each in newest if wanted(each)]
        assert (names, await ids(page)) == (names, expected)
        assert 0 < len(expected) < 200
        assert [name for name in names.split() if f"{name}=" not in page.url] == []

    shared = await open_page(page.url)
    assert await ids(shared) == expected
    await expect(shared.get_by_label("Type", exact=True)).to_have_value("push")
    await page.get_by_role("link", name=re.compile("min_attempts")).click()
    await expect(page).not_to_have_url(re.compile("min_attempts"))

    await page.goto(f"{url}/console?range=all&limit=200")
    await fill_in(page, {"Order": "attempt_count", "Events per page": "100"})
    fewest = sorted(newest, key=lambda each: (each["attempt_count"], each["received_at"]))
    assert await ids(page) == [each["_id"] for each in fewest[:100]]

    fields = page.locator("#filters [name]")
    names = await fields.evaluate_all("fields => fields.map(field => field.name)")
    assert set(names) == {name for each in found for name in each.split()} | {"sort", "limit"}
    assert set(names) >= {name for name, *_ in FILTER_FIELDS}


async def test_filter_form_marks_an_invalid_field(open_page, url):
    page = await open_page(f"{url}/console?id_prefix=xyz")
    await expect(page.get_by_role("alert")).to_contain_text("id_prefix")
    field = page.get_by_label("Event id starts with")
    await expect(field).to_have_attribute("aria-invalid", "true")
    await expect(field).to_have_accessible_description(re.compile("lower-case hex"))


async def test_event_list_pages_lead_forth_and_back(open_page, url, stored_events):
    page = await open_page(f"{url}/console?range=all&limit=100")
    seen = [await ids(page)]
    while await page.get_by_role("link", name="Older").count():
        async with page.expect_navigation():
            await page.get_by_role("link", name="Older").click()
        await expect(page).to_have_url(re.compile("cursor="))
        if (now := await ids(page)) != seen[-1]:
            seen.append(now)
    flat = [each for some in seen for each in some]
    assert sorted(flat) == sorted(each["_id"] for each in stored_events)
    async with page.expect_navigation():
        await page.get_by_role("link", name="Newer").click()
    assert await ids(page) == seen[-2]


async def test_find_opens_an_event(open_page, url, stored_events):
    page = await open_page(f"{url}/console")
    await page.get_by_role("searchbox").fill(stored_events[5]["_id"])
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(f"{url}/console/events/{stored_events[5]['_id']}")


async def test_event_page_shows_attempts_payload_and_headers(open_page, url, stored_events):
    event = next(each for each in stored_events if each["attempt_count"] == 3)
    page = await open_page(f"{url}/console/events/{event['_id']}")
    await expect(page.get_by_text(re.compile(r"Attempt [123] (failed|delivered)"))).to_have_count(3)
    await page.get_by_text("Response body").last.click()
    await expect(page.locator(".timeline pre").last).to_contain_text("ok")
    await expect(page.get_by_label("Payload, formatted")).to_be_visible()
    await page.get_by_text("Raw", exact=True).click()
    await expect(page.get_by_label("Payload as received")).to_have_text(event["payload"].decode())
    await expect(page.get_by_text("GitHub-Hookshot/044aadd")).to_be_visible()
    async with page.expect_download() as download:
        await page.get_by_role("link", name=re.compile("Download")).click()
    path = await (await download.value).path()
    assert path.read_bytes() == event["payload"]


async def test_totals_refresh_while_the_page_is_visible(open_page, url, stored_events, db):
    page = await open_page(f"{url}/console?range=all")
    before = Counter(each["status"] for each in stored_events)["DELIVERED"]
    tile = page.locator(".tile[data-status=DELIVERED] .figure")
    await expect(tile).to_have_text(str(before))
    await db.events.update_one({"status": "RECEIVED"}, {"$set": {"status": "DELIVERED"}})
    await expect(tile).to_have_text(str(before + 1), timeout=20_000)


async def test_copy_button_copies_the_event_id(open_page, url, stored_events):
    page = await open_page(
        f"{url}/console/events/{stored_events[0]['_id']}",
        permissions=["clipboard-read", "clipboard-write"],
    )
    await page.get_by_role("button", name="Copy").first.click()
    await expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert await page.evaluate("navigator.clipboard.readText()") == stored_events[0]["_id"]


# -- actions ---------------------------------------------------------------------------------


async def test_replay_form_replays_an_event(open_page, url, stored_events, db):
    event = event_ids_by_name(stored_events)["failed"]
    page = await open_page(f"{url}/console/events/{event}")
    await page.get_by_role("link", name="Replay…").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Replay this event?")
    assert "history" not in await db.events.find_one({"_id": event})
    await page.get_by_label("Your name").fill("ada")
    await page.get_by_label("Reason").fill("the receiver is back")
    await page.get_by_role("button", name="Replay the event").click()
    await expect(page.get_by_role("status")).to_contain_text("due again")
    await expect(page.locator(".timeline")).to_contain_text(
        "by ada (127.0.0.1): the receiver is back"
    )
    [entry] = (await db.events.find_one({"_id": event}))["history"]
    assert entry["by"] == "ada"


async def test_cancel_form_cancels_an_event(open_page, url, stored_events, db):
    event = event_ids_by_name(stored_events)["waiting"]
    page = await open_page(f"{url}/console/events/{event}")
    await page.get_by_role("link", name="Cancel…").click()
    await page.get_by_role("button", name="Cancel the event").click()
    await expect(page.get_by_role("status")).to_contain_text("cancelled")
    assert (await db.events.find_one({"_id": event}))["status"] == "FAILED_PERMANENTLY"


async def test_bulk_replay_form_replays_and_shows_progress(open_page, url, stored_events, db):
    failed = [each["_id"] for each in stored_events if each["status"] == "FAILED_PERMANENTLY"]
    page = await open_page(f"{url}/console?status=FAILED_PERMANENTLY&range=all")
    await page.get_by_role("link", name="Replay these…").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(f"Replay {len(failed)} events?")
    button = page.get_by_role("button", name=f"Replay {len(failed)} events")
    await button.click()
    assert "/console/replay" in page.url  # the box is not ticked, so the browser sends nothing
    await page.get_by_label("Yes, replay them").check()
    await button.click()
    await expect(page).to_have_url(re.compile("/console/actions/[0-9a-f]{32}$"))
    await expect(page.get_by_text("Done")).to_be_visible()
    await expect(page.locator("main")).to_contain_text(f"{len(failed)} replayed")
    assert await db.events.count_documents({"history": {"$exists": True}}) == len(failed)


@pytest.mark.usefixtures("bulk_action")
async def test_bulk_cancel_form_cancels_and_stop_button_stops(open_page, url, stored_events, db):
    waiting = sum(each["status"] == "RECEIVED" for each in stored_events)
    page = await open_page(f"{url}/console?status=RECEIVED")
    await page.get_by_role("link", name="Cancel these…").click()
    await page.get_by_role("link", name="Back", exact=True).click()
    await expect(page).to_have_url(f"{url}/console?status=RECEIVED")
    await page.get_by_role("link", name="Cancel these…").click()
    await page.get_by_label("Yes, cancel them").check()
    await page.get_by_role("button", name=f"Cancel {waiting} events").click()
    await expect(page.get_by_text("Done")).to_be_visible()
    await expect(page.locator("main")).to_contain_text(f"{waiting} cancelled")
    assert await db.events.count_documents({"history.action": "cancel"}) == waiting
    await page.goto(f"{url}/console/actions/r2")
    await page.get_by_role("button", name="Stop").click()
    await expect(page.get_by_text("Stopping")).to_be_visible()
    assert (await db.bulk_actions.find_one({"_id": "r2"}))["stop_requested"]


# -- login -----------------------------------------------------------------------------------


async def test_login_with_wrong_then_right_token_and_logout(open_page, serve, stored_events):
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as url:
        wanted = f"{url}/console/events/{stored_events[0]['_id']}"
        page = await open_page(wanted)
        field = page.get_by_label("Operators' token")
        await expect(field).to_be_focused()
        assert await axe_violations(page) == []
        await field.fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("The token is wrong")
        await expect(field).to_have_attribute("aria-invalid", "true")
        assert await axe_violations(page) == []
        await field.fill(TOKEN)
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(wanted)
        [cookie] = await page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        assert await page.evaluate("document.cookie") == ""
        await page.get_by_role("button", name="Log out").click()
        await expect(page).to_have_url(f"{url}/console/login")
        assert await page.context.cookies() == []
        await page.goto(wanted)
        await expect(field).to_be_visible()


async def test_swagger_ui_shows_this_services_document_and_no_other(open_page, serve):
    foreign = "https://evil.example/x.json"
    asked = set()
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as url:
        page = await open_page(f"{url}/console/login")
        await log_in(page)
        page.on("request", lambda request: asked.add(request.url.partition("?")[0]))
        for query in ("", f"url={foreign}", f"configUrl={foreign}", "url=/a.json&urls=[]"):
            await page.goto(f"{url}/docs?{query}")
            await expect(page.locator(".opblock-summary-path").first).to_be_visible()
            paths = await page.locator(".opblock-summary-path").all_inner_texts()
            answer = await page.request.get(f"{url}/docs/openapi.json")
            known = set((await answer.json())["paths"])
            assert {each.replace("\u200b", "") for each in paths} == known
        assert {each.removeprefix(url) for each in asked if not each.startswith("data:")} <= {
            "/docs",
            "/docs/openapi.json",
            "/docs/static/swagger-ui.css",
            "/docs/static/swagger-ui-bundle.js",
            "/docs/static/page.css",
            "/docs/static/page.js",
            "/docs/static/icon.svg",
            "/console/static/icon.svg",  # of the page before, late
        }
        await page.get_by_role("link", name="Console").click()
        await expect(page).to_have_url(f"{url}/console")


# -- other sites -----------------------------------------------------------------------------


OTHER_SITE = "http://localhost:9/"
"""Another site, in the same browser with the same cookies. Nothing listens there."""


async def visit_other_site(page, html):
    """Open a page of the other site that consists of `html`."""

    async def answer(route):
        await route.fulfill(body=html, content_type="text/html")

    await page.route(OTHER_SITE, answer)
    await page.goto(OTHER_SITE)


async def log_in(page):
    await page.get_by_label("Operators' token").fill(TOKEN)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("button", name="Log out")).to_be_visible()


@pytest.mark.parametrize("changes", [{}, {"WDS_OPERATOR_TOKEN": TOKEN}], ids=["local", "token"])
@pytest.mark.parametrize("action", ["console/events/{}/replay", "webhooks/events/{}/replay"])
@pytest.mark.usefixtures("stored_events")
async def test_form_on_another_site_cannot_act(open_page, serve, db, changes, action):
    event = (await db.events.find_one({"status": "FAILED_PERMANENTLY"}))["_id"]
    async with serve(**changes) as url:
        page = await open_page(f"{url}/console")
        if changes:
            await log_in(page)
        where = f"{url}/{action.format(event)}"
        await visit_other_site(
            page, f"<form method=post action='{where}'><button>win</button></form>"
        )
        async with page.expect_response(where) as answered:
            await page.get_by_role("button", name="win").click()
        assert (await answered.value).status in {401, 403}
    assert not await db.events.count_documents({"history": {"$exists": True}})


async def test_frame_on_another_site_cannot_show_the_console(open_page, serve, stored_events):
    async with serve(WDS_OPERATOR_OPEN="true") as url:
        page = await open_page()
        await visit_other_site(
            page, f"<iframe src='{url}/console/events/{stored_events[0]['_id']}'></iframe>"
        )
        frame = page.frames[1]
        assert stored_events[0]["_id"] not in await frame.locator("html").inner_text()
        open_page.forgive()  # the browser reports that it refused


async def test_link_on_another_site_opens_its_view(open_page, serve, stored_events):
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as url:
        page = await open_page(f"{url}/console")
        await log_in(page)
        wanted = f"{url}/console/events/{stored_events[0]['_id']}"
        elsewhere = "http://localhost:9/"
        link = f"<a href='{wanted}'>look</a>"
        await page.route(
            elsewhere, lambda route: route.fulfill(body=link, content_type="text/html")
        )
        await page.goto(elsewhere)
        await page.get_by_role("link", name="look").click()
        await expect(page.locator("#event-id")).to_have_text(stored_events[0]["_id"])


# -- keyboard, no JavaScript -----------------------------------------------------------------


async def focused(page):
    return await page.evaluate(
        "(document.activeElement.getAttribute('aria-label') || document.activeElement.textContent"
        " || document.activeElement.name || '').trim().replace(/\\s+/g, ' ')"
    )


async def tab_to(page, wanted, most=80):
    """Press Tab until the focused element's text matches."""
    for _ in range(most):
        await page.keyboard.press("Tab")
        if re.search(wanted, await focused(page)):
            return
    pytest.fail(f"{wanted} cannot be reached by keyboard")


async def follow(page):
    """Press Enter on a link or button, and wait until the next page has loaded."""
    async with page.expect_navigation():
        await page.keyboard.press("Enter")


async def test_keyboard_alone_is_enough_to_replay(open_page, url, stored_events, db):
    page = await open_page(f"{url}/console?range=all")
    await page.keyboard.press("Tab")
    assert await focused(page) == "Skip to content"
    await page.keyboard.press("Enter")
    await tab_to(page, "^Failed")
    await follow(page)
    await expect(page).to_have_url(re.compile("status=FAILED"))
    await tab_to(page, "Skip the histogram")
    await page.keyboard.press("Enter")
    await tab_to(page, "^[0-9a-f]{32}$")
    await follow(page)
    await expect(page).to_have_url(re.compile("/console/events/"))
    await tab_to(page, "^Replay…$")
    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    await follow(page)
    await tab_to(page, "^by$")
    await page.keyboard.type("ada")
    await tab_to(page, "^Replay the event$")
    await follow(page)
    await expect(page.get_by_role("status")).to_contain_text("due again")
    assert await db.events.count_documents({"history.by": "ada"}) == 1
    assert stored_events


async def test_histogram_bar_can_be_chosen_by_keyboard(open_page, url, stored_events):
    page = await open_page(f"{url}/console?range=all")
    assert stored_events
    await tab_to(page, r"^\d{4}-\d\d-\d\d ")
    await follow(page)
    await expect(page).to_have_url(re.compile("from="))


async def test_console_works_without_javascript(open_page, url, stored_events, db):
    page = await open_page(f"{url}/console?range=all&limit=25", java_script_enabled=False)
    await page.locator(".histogram a").first.click()
    await expect(page).to_have_url(re.compile("from="))
    await page.goto(f"{url}/console?range=all&limit=25")
    await page.get_by_role("link", name="Older").click()
    await expect(page).to_have_url(re.compile("cursor="))
    await page.locator("details.filters > summary").click()
    await page.get_by_role("checkbox", name="Failed").check()
    await page.get_by_role("button", name="Apply filters").click()
    await expect(page).to_have_url(re.compile("status=FAILED_PERMANENTLY"))
    assert "event_type=" not in page.url
    await page.get_by_role("link", name="Replay these…").click()
    await page.get_by_label("Yes, replay them").check()
    await page.get_by_role("button", name=re.compile("^Replay ")).click()
    await expect(page.get_by_text("Done")).to_be_visible(timeout=20_000)
    failed = [each for each in stored_events if each["status"] == "FAILED_PERMANENTLY"]
    assert await db.events.count_documents({"history": {"$exists": True}}) == len(failed)


async def test_error_page_reloads_once_the_service_answers(open_page, url, monkeypatch):
    async def unavailable(*_):
        raise StoreUnavailableError

    with monkeypatch.context() as patch:
        patch.setattr(Replicas, "backlog", unavailable)
        page = await open_page(f"{url}/console")
        await expect(page.get_by_role("alert")).to_contain_text("MongoDB does not answer")
        assert await axe_violations(page) == []
    await expect(page.get_by_role("heading", name="Events", exact=True)).to_be_visible(
        timeout=20_000
    )


async def test_event_page_of_a_large_payload_loads_quickly(open_page, url, store):
    event = new_event(b'{"a":[' + b'{"key":"value","n":1},' * 40_000 + b"1]}")
    await store.writer.insert([event])
    page = await open_page(f"{url}/console/events/{event.id}")
    await expect(page.get_by_text("Truncated").first).to_be_visible()
    took = await page.evaluate(
        "performance.timing.loadEventEnd - performance.timing.navigationStart"
    )
    assert took < 5000
