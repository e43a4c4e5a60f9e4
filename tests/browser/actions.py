"""What the tests do on a page of the console, and what they read from it."""

from __future__ import annotations

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import expect

TOKEN = "the-operators-token"


def event_ids_by_name(stored_events):
    """Return the ids of an event that failed and of one that waits for a retry."""
    return {
        "failed": next(
            each["_id"] for each in stored_events if each["status"] == "FAILED_PERMANENTLY"
        ),
        "waiting": next(each["_id"] for each in stored_events if each["status"] == "DELIVERING"),
    }


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


async def ids(page):
    """Return the ids of the events in the list, in order."""
    links = page.locator("table.events a.id")
    return await links.evaluate_all("links => links.map(link => link.href.split('/').pop())")


async def log_in(page):
    """Fill in the login form and submit it."""
    await page.get_by_label("Operators' token").fill(TOKEN)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("button", name="Log out")).to_be_visible()
