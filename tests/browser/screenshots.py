"""Take the screenshots in the documents: `make screenshots`. Run by pytest, for its fixtures."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests import history
from tests.browser.conftest import DESKTOP, PHONE

IMAGES = Path(__file__).parents[2] / "docs" / "images"
TOKEN = "a-token-for-the-screenshots"


@pytest.fixture
async def busy_day(db, store):  # noqa: ARG001 - the store makes the indexes
    now = history.utc_now()
    documents = [*history.past(now, 12_000), *history.waiting(now, random.Random(1))]
    await db.events.insert_many(documents)
    await db.fleet.insert_one(history.replicas(now))
    return documents


def third_attempt_delivered(documents):
    """Return the id of an event that was delivered at the third attempt."""
    return next(
        each["_id"]
        for each in documents
        if each["attempt_count"] == 3 and each["status"] == "DELIVERED"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_screenshots_show_list_and_event(open_page, url, busy_day, scheme):
    page = await open_page(f"{url}/console?limit=25", scheme=scheme)
    await page.screenshot(path=IMAGES / f"console-{scheme}.png")
    await page.goto(f"{url}/console/events/{third_attempt_delivered(busy_day)}")
    await page.screenshot(path=IMAGES / f"console-event-{scheme}.png")


async def test_screenshots_on_a_phone(open_page, url, busy_day):
    page = await open_page(f"{url}/console?limit=25", viewport=PHONE)
    await page.screenshot(path=IMAGES / "console-phone.png")
    await page.goto(f"{url}/console/events/{third_attempt_delivered(busy_day)}")
    await page.screenshot(path=IMAGES / "console-event-phone.png")


async def test_screenshots_of_login_and_bulk_replay(open_page, serve, busy_day):
    assert busy_day
    async with serve(WDS_OPERATOR_TOKEN=TOKEN) as url:
        page = await open_page(f"{url}/console", viewport=DESKTOP)
        await page.screenshot(path=IMAGES / "console-login.png", clip=_top(620))
        await page.get_by_label("Operators' token").fill(TOKEN)
        await page.get_by_role("button", name="Log in").click()
        await page.goto(f"{url}/console/replay?status=FAILED_PERMANENTLY&range=24h")
        await page.screenshot(path=IMAGES / "console-replay.png")


def _top(height):
    return {"x": 0, "y": 0, "width": DESKTOP["width"], "height": height}
