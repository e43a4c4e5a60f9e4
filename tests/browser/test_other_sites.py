"""Login, Swagger UI, and what pages of other sites cannot do, in a real browser."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.browser.actions import (
    TOKEN,
    axe_violations,
    log_in,
)


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


OTHER_SITE = "http://localhost:9/"
"""Another site, in the same browser with the same cookies. Nothing listens there."""


async def visit_other_site(page, html):
    """Open a page of the other site that consists of `html`."""

    async def answer(route):
        await route.fulfill(body=html, content_type="text/html")

    await page.route(OTHER_SITE, answer)
    await page.goto(OTHER_SITE)


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
