"""A real Chromium and a real service. The environment variable CHROMIUM is the browser's path."""

from __future__ import annotations

import os
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from playwright.async_api import async_playwright

from tests import history
from tests.support import make_settings
from wds.ingest import create_app
from wds.web.server import listening

if TYPE_CHECKING:
    from playwright.async_api import Page

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}


@dataclass
class WatchedPage:
    """A page of the browser, and the errors, warnings and dialogs that it caused."""

    page: Page
    faults: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("dialog", self._dialog)

    def _console(self, message):
        # The browser reports every answer of 400 and above. The tests cause those on purpose.
        if message.type in {"error", "warning"} and "Failed to load resource" not in message.text:
            self.faults.append(f"{message.type}: {message.text}")

    async def _dialog(self, dialog):
        self.faults.append(f"dialog: {dialog.message}")
        await dialog.dismiss()


@pytest.fixture
async def chromium():
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        await browser.close()


@pytest.fixture
async def open_page(chromium):
    """Return a function that opens a page; at the end, no page may have caused a fault."""
    pages = []

    async def open_one(url=None, *, viewport=DESKTOP, scheme="light", **options):
        context = await chromium.new_context(
            viewport=viewport, color_scheme=scheme, reduced_motion="reduce", **options
        )
        context.set_default_timeout(15_000)
        watched = WatchedPage(await context.new_page())
        watched.watch()
        pages.append(watched)
        if url is not None:
            await watched.page.goto(url)
        return watched.page

    def forgive():
        """Forget the faults that a control caused on purpose."""
        for watched in pages:
            watched.faults.clear()

    open_one.forgive = forgive
    yield open_one
    assert [fault for watched in pages for fault in watched.faults] == []


@pytest.fixture
def serve(engines, store):
    """Return a function that serves the console with some settings and yields its URL."""

    @asynccontextmanager
    async def run(**changes):
        app = create_app(make_settings(engines, **changes), store)
        async with listening(app, "127.0.0.1", 0) as port:
            yield f"http://127.0.0.1:{port}"

    return run


@pytest.fixture
async def url(serve):
    """Return the URL of a service without a token."""
    async with serve() as address:
        yield address


@pytest.fixture
async def stored_events(db, store):  # noqa: ARG001 - the store makes the indexes
    """Insert some 300 events of all statuses, received over the last day, and three replicas."""
    now = history.utc_now()
    documents = [*history.past(now, 300), *history.waiting(now, random.Random(1))]
    await db.events.insert_many(documents)
    await db.fleet.insert_one(history.replicas(now))
    return documents


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
