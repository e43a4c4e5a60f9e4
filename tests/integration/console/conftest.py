"""Services with the console, in this process, and events for them to show."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager

import aiohttp
import pytest

from tests import history
from tests.integration.console.logins import EVENT, Answer
from tests.integration.console.pages import serve_console
from tests.support import make_settings
from wds.ingest import create_app
from wds.web.server import listening


@pytest.fixture
async def get_page(settings, store):
    """Return a function that requests pages of a service without a token."""
    async with serve_console(settings, store) as ask:
        yield ask


@pytest.fixture
async def stored_events(db, store):  # noqa: ARG001 - the store makes the indexes
    """Insert events of all statuses, received over the last day, and three replicas."""
    now = history.utc_now()
    documents = [*history.past(now, 120), *history.waiting(now, random.Random(1))]
    await db.events.insert_many(documents)
    await db.fleet.insert_one(history.replicas(now))
    return documents


@pytest.fixture
def serve(engines, store, db):  # noqa: ARG001 - `db` drops the database
    """Return a function that serves the app with some settings and yields an `ask` for requests."""

    @asynccontextmanager
    async def run(**changes):
        app = create_app(make_settings(engines, **changes), store)
        await store.writer.insert([EVENT])
        async with (
            listening(app, "127.0.0.1", 0) as port,
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
        ):

            async def ask(path, *, method=None, data=None, cookie=None, **headers):
                sent = {name.replace("_", "-"): value for name, value in headers.items()}
                if cookie is not None:
                    sent["Cookie"] = cookie.partition(";")[0]
                async with session.request(
                    method or ("GET" if data is None else "POST"),
                    f"http://127.0.0.1:{port}{path}",
                    data=data,
                    headers=sent,
                    allow_redirects=False,
                ) as answer:
                    return Answer(answer.status, answer.headers, await answer.text())

            ask.app, ask.origin = app, f"http://127.0.0.1:{port}"
            yield ask

    return run
