"""Replaying and cancelling in a real browser."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import expect

from tests.browser.actions import (
    event_ids_by_name,
)


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
