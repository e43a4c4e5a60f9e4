"""How `send` reports the answers of a service, which need not be an ingest service."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from tests.support import SECRET
from wds.cli.send import Posting, send
from wds.ingestion import sources
from wds.web.server import listening


@asynccontextmanager
async def answering(status, body, content_type="application/json"):
    async def answer(_):
        return web.Response(status=status, text=body, content_type=content_type)

    app = web.Application()
    app.router.add_post("/", answer)
    async with listening(app, "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}/"


async def sent(url, count=1):
    postings = [Posting(b"{}", f"key-{number}") for number in range(count)]
    return await send(url, sources.default_source((SECRET,)), postings, count)


async def test_send_prints_the_id_of_one_event_and_the_number_of_many(capsys):
    async with answering(202, '{"id":"e1","status":"RECEIVED","duplicate":false}') as url:
        assert (await sent(url), await sent(url, 3)) == (0, 0)
    assert capsys.readouterr().out.splitlines()[-2:] == ["e1", "3 stored, 0 repeated, 0 refused"]


async def test_send_prints_the_challenge_of_slack(capsys):
    async with answering(200, '{"challenge":"c1"}') as url:
        assert await sent(url) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "c1"


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("body", "kind"), [("<html>", "text/html"), ('{"ok":true}', "application/json"), ("", "a/b")]
)
async def test_send_counts_answers_of_another_service_as_refused(body, kind, count, capsys):
    async with answering(200, body, kind) as url:
        assert await sent(url, count) == 1
    said = capsys.readouterr()
    assert f"0 stored, 0 repeated, {count} refused" in said.out
    assert "is this a wds ingest service?" in said.err
