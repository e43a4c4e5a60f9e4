"""A real Chromium before a real service. the variable CHROMIUM says where it is."""

from __future__ import annotations

import os
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
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
class Eye:
    """One page of the browser, and everything on it that should not have happened."""

    page: Page
    faults: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("dialog", self._dialog)

    def _console(self, message):
        # The browser reports every answer from 400 on; those are asked for on purpose.
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
    """Return a function that opens a page as asked for; no page may have done what it must not."""
    eyes = []

    async def opened(url=None, *, viewport=DESKTOP, scheme="light", **options):
        context = await chromium.new_context(
            viewport=viewport, color_scheme=scheme, reduced_motion="reduce", **options
        )
        context.set_default_timeout(15_000)
        eye = Eye(await context.new_page())
        eye.watch()
        eyes.append(eye)
        if url is not None:
            await eye.page.goto(url)
        return eye.page

    def forgive():
        """Forget what a control made go wrong on purpose."""
        for eye in eyes:
            eye.faults.clear()

    opened.forgive = forgive
    yield opened
    assert [fault for eye in eyes for fault in eye.faults] == []


@pytest.fixture
def serving(engines, store):
    """Return a context manager that serves the console under given settings; gives its address."""

    @asynccontextmanager
    async def run(**changes):
        app = create_app(make_settings(engines, **changes), store)
        async with listening(app, "127.0.0.1", 0) as port:
            yield f"http://127.0.0.1:{port}"

    return run


@pytest.fixture
async def url(serving):
    """Give the address of a service without a token."""
    async with serving() as address:
        yield address


@pytest.fixture
async def past(db, store):  # noqa: ARG001 - the store makes the indexes
    """Insert some hundred events with a past, and a fleet."""
    now = history.utc_now()
    documents = [*history.past(now, 300), *history.waiting(now, random.Random(1))]
    await db.events.insert_many(documents)
    await db.fleet.insert_one(history.replicas(now))
    return documents
