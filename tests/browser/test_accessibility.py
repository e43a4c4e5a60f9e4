"""The console for everybody: axe-core, both colour schemes, phones, keyboard, no JavaScript."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import expect

from tests.browser.actions import (
    axe_violations,
    event_ids_by_name,
    open_all,
)
from tests.browser.conftest import DESKTOP, PHONE

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


async def overflow_px(page):
    """Return by how many pixels a page is wider than its window."""
    return await page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.usefixtures("bulk_action")
async def test_views_are_accessible_and_fit_in_both_schemes_and_sizes(
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
