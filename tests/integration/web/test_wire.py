"""Malformed and unusual requests as raw bytes: each gets a 4xx or a closed connection in time.

Every case is written to a socket, because HTTP clients correct what they send. No case may cause a
5xx or a hang, store an event that was not acknowledged, or leave more in the log than one line for
each refusal, without anything that was sent.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass

import pytest
import pytest_asyncio
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorDatabase
from structlog.testing import capture_logs

from tests.integration.web.wire_cases import CASES, CLOSED, HANG_UP, MARKER, SIGNATURE, WAIT, whole
from tests.support import make_settings
from wds.config import Settings
from wds.ingest import create_app
from wds.ingestion import sources
from wds.storage.store import Store
from wds.web import protocol
from wds.web.server import listening

SLOW_S = 0.3
MOST_S = 8.0
"""Far longer than a case may take, and shorter than aiohttp's own lingering."""


@dataclass
class Service:
    """One service for all cases, so that each runs after all the others on the same process."""

    port: int
    store: Store
    db: AsyncIOMotorDatabase

    async def stored(self):
        return await self.db.events.count_documents({})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(engines):
    found = sources.load(
        '[sources.slack]\nscheme = "slack"\nsecrets = ["s"]\n[sources.standard]\n'
        'scheme = "standard"\nsecrets = ["whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3"]',
        {},
        "wds.toml",
    )
    quick = make_settings(engines, WDS_BODY_TIMEOUT=str(SLOW_S))
    store = Store(quick.mongo_url, quick.mongo_db)
    await store.open()
    client = AsyncIOMotorClient(quick.mongo_url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "HEADERS_S", SLOW_S)
        patch.setattr(protocol, "LINGER_S", SLOW_S)
        async with listening(create_app(quick, store, found), "127.0.0.1", 0) as port:
            yield Service(port, store, client[quick.mongo_db])
    await store.close()
    await client.drop_database(quick.mongo_db)
    client.close()


async def exchange(port, parts):
    """Write `parts`; return the answer and its statuses, or `CLOSED` alone without an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answering = asyncio.create_task(answer_of(reader, to_the_end=WAIT in parts or HANG_UP in parts))
    try:
        for part in parts:
            if part is HANG_UP:
                writer.write_eof()
            elif part is not WAIT:
                writer.write(part)
                await asyncio.wait({answering}, timeout=SLOW_S / 10 if len(part) == 1 else 0)
            if answering.done():
                break
        answer = await answering
    finally:
        writer.transport.abort()
    statuses = [int(each) for each in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)]
    return answer, statuses or [CLOSED]


async def answer_of(reader, *, to_the_end):
    answer = b""
    with suppress(ConnectionError):
        while chunk := await reader.read(65536):
            answer += chunk
            if complete(answer) and not to_the_end:
                break
    return answer


def complete(answer):
    """Tell whether the first answer is complete, by its Content-Length."""
    top, gap, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", top, re.IGNORECASE)
    return bool(gap) and length is not None and len(body) >= int(length[1])


def test_wire_cases_are_more_than_a_hundred():
    assert len(CASES) >= 130


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_wire_case_is_answered_and_stores_nothing(service, case):
    parts, expected = case
    before = await service.stored()
    with capture_logs() as lines:
        answer, statuses = await asyncio.wait_for(exchange(service.port, parts), MOST_S)

    assert statuses[0] in expected, (statuses, answer[:300])
    assert all(status < 500 for status in statuses)
    assert await service.stored() == before + statuses.count(202)
    refused = [status for status in statuses if status >= 400]
    logged = [line for line in lines if line["event"] == "refused"]
    # One more if the client left before its answer, or if a second request followed.
    assert len(refused) <= len(logged) <= len(refused) + 1
    known = {"event", "log_level", "route", "http_status", "code", "remote", "event_id"}
    assert all(set(line) <= known for line in logged)
    assert MARKER not in repr(lines).encode() and SIGNATURE not in repr(lines)
    assert not [line for line in lines if line["log_level"] in {"error", "critical"}]
    if refused:
        assert b'{"error": {"code": "' in answer, answer


@pytest.mark.asyncio(loop_scope="module")
async def test_ingest_still_works_after_all_wire_cases_at_once(service):
    await asyncio.gather(*(exchange(service.port, parts) for parts, _ in CASES.values()))
    before = await service.stored()
    _, statuses = await exchange(service.port, [whole()])

    assert statuses == [202]
    assert await service.stored() == before + 1


def test_default_timeouts_of_headers_and_body_are_under_five_seconds():
    assert Settings().body_timeout < 5 and protocol.HEADERS_S < 5
