"""The list of events and the page of one event, in a real browser."""

from __future__ import annotations

import re
from collections import Counter
from datetime import timedelta

import pytest
from playwright.async_api import expect

from tests.browser.actions import (
    axe_violations,
    ids,
)
from tests.support import new_event
from wds.console.event_query import datetime_local
from wds.console.events import FILTER_FIELDS
from wds.domain.errors import StoreUnavailableError
from wds.storage.lease_queue import MongoLeaseQueue


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


async def test_error_page_reloads_once_the_service_answers(open_page, url, monkeypatch):
    async def unavailable(*_):
        raise StoreUnavailableError

    with monkeypatch.context() as patch:
        patch.setattr(MongoLeaseQueue, "backlog", unavailable)
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
