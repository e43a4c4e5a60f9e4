"""Those who send slowly or too much do not keep a well-behaved sender out."""

from __future__ import annotations

import asyncio
import io
import time
import tracemalloc
from contextlib import asynccontextmanager, contextmanager, suppress

import aiohttp
import pytest
from prometheus_client import REGISTRY

from tests.support import eventually, make_settings, signed
from wds import ingest
from wds.domain.errors import QueueFullError
from wds.ingest import create_app
from wds.storage.event_writer import EventWriter
from wds.web import body_reader
from wds.web.server import listening

MIB = 1024 * 1024
PATH = "/webhooks/ingest"
BODY = b'{"n":1}'


def held():
    return REGISTRY.get_sample_value("wds_body_bytes")


@asynccontextmanager
async def serving(engines, store, **changes):
    settings = make_settings(engines, **changes)
    async with (
        listening(create_app(settings, store), "127.0.0.1", 0) as port,
        aiohttp.ClientSession() as session,
    ):
        yield port, session


@asynccontextmanager
async def hoarding(port, count, size):
    """Keep `count` senders who send `size` bytes of a body of 1 MiB and then no more."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: wds\r\nContent-Length: {MIB}\r\n\r\n".encode()

    async def hoard():
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(head + b" " * size)
                answers.append(await reader.readline())
            except ConnectionError:
                answers.append(b"")
            finally:
                writer.transport.abort()
                await asyncio.wait([asyncio.ensure_future(closed(writer))])
            await asyncio.sleep(0.2)

    answers = []
    tasks = [asyncio.create_task(hoard()) for _ in range(count)]
    try:
        yield answers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def closed(writer):
    with suppress(ConnectionError):
        await writer.wait_closed()


async def post(session, port, body=BODY):
    url = f"http://127.0.0.1:{port}{PATH}"
    async with session.post(url, data=body, headers=signed(body)) as response:
        await response.read()
        return response.status, response.headers.get("Retry-After")


@contextmanager
def traced():
    """Count what is allocated inside the block and still held, in bytes."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield lambda: tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


HOARDERS = {"WDS_BODY_MEMORY": str(8 * MIB), "WDS_BODY_TIMEOUT": "600"}
"""Nobody is too slow before the test is over: what is free was made so."""


async def test_hoarders_of_memory_make_room_for_a_well_behaved_sender(engines, store, db):  # noqa: ARG001
    most = 0
    async with (
        serving(engines, store, **HOARDERS) as (port, session),
        hoarding(port, 40, 900 * 1024) as answers,
    ):
        await eventually(lambda: held() > 7 * MIB)
        for number in range(100):
            status, _ = await post(session, port, b'{"a":"%s"}' % (b"x" * 1000 * number))
            most = max(most, held())
            assert status == 202, number
        assert answers
    assert most <= 8 * MIB


async def test_without_room_being_made_the_well_behaved_sender_is_kept_out(
    engines,
    store,
    db,  # noqa: ARG001
    monkeypatch,
):
    """The control of the test above: first come, first served."""

    def first_come(self, reading, size):
        if self._held + size > self._budget:
            raise QueueFullError
        self._hold(reading, size)

    monkeypatch.setattr(body_reader.Intake, "_take", first_come)
    async with (
        serving(engines, store, **HOARDERS) as (port, session),
        hoarding(port, 40, 900 * 1024),
    ):
        await eventually(lambda: held() > 7 * MIB)
        answers = [
            await post(session, port, b'{"a":"%s"}' % (b"x" * MIB)[:900_000]) for _ in "12345"
        ]
    assert (503, "2") in answers


async def test_memory_is_given_back_however_a_request_ends(engines, store, db):  # noqa: ARG001
    async with serving(engines, store, WDS_BODY_TIMEOUT="0.2") as (port, session):
        await asyncio.gather(*(post(session, port) for _ in range(50)))
        url = f"http://127.0.0.1:{port}{PATH}"
        async with session.post(url, data=BODY) as response:
            assert response.status == 401
        async with session.post(url, data=io.BytesIO(bytes(2 * MIB))) as response:
            assert response.status == 413
        async with hoarding(port, 5, 1000) as answers:
            await eventually(lambda: len(answers) >= 10)
        assert {line.split()[1] for line in answers if line} == {b"408"}
        await eventually(lambda: held() == 0)


async def test_an_idle_connection_keeps_no_body(engines, store, db):  # noqa: ARG001
    head = f"POST {PATH} HTTP/1.1\r\nHost: wds\r\nContent-Length: {MIB}\r\n\r\n".encode()
    async with serving(engines, store) as (port, _):
        with traced() as memory:
            writers = []
            for _ in range(10):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writers.append(writer)
                writer.write(head + b" " * MIB)
                assert (await reader.readline()).split()[1] == b"401"
            assert await eventually(lambda: held() == 0)
            assert memory() < 3 * MIB
        for writer in writers:
            writer.transport.abort()


def stalling(monkeypatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Have writes wait: give what tells that one does, and what lets all go on."""
    waiting, go_on = asyncio.Event(), asyncio.Event()

    def stalled(write):
        async def late(self, events):
            waiting.set()
            await go_on.wait()
            return await write(self, events)

        return late

    monkeypatch.setattr(EventWriter, "insert", stalled(EventWriter.insert))
    monkeypatch.setattr(EventWriter, "insert_all", stalled(EventWriter.insert_all))
    return waiting, go_on


async def test_what_a_body_holds_is_forgotten_while_the_store_is_waited_for(
    engines,
    store,
    db,  # noqa: ARG001
    monkeypatch,
):
    body = b'{"a":[%s]}' % b",".join([b"[]"] * 300_000)
    async with serving(engines, store) as (port, session):
        assert (await post(session, port))[0] == 202
        waiting, go_on = stalling(monkeypatch)
        with traced() as memory:
            sending = asyncio.create_task(post(session, port, body))
            await waiting.wait()
            assert held() > len(body)
            assert memory() < 6 * MIB
            go_on.set()
            assert (await sending)[0] == 202


@pytest.mark.parametrize(("timeout_s", "status"), [(3, 202), (1, 408)], ids=["fair", "slow"])
async def test_a_body_that_keeps_coming_at_a_fair_rate_may_take_longer(
    engines, store, db, monkeypatch, *, timeout_s, status
):
    """Six pieces, one every 0.6 s, each of which is worth 2 s or nearly nothing."""
    body = b'{"a":"%s"}' % (b"x" * 300 * 1024)
    piece = 50 * 1024
    monkeypatch.setattr(
        body_reader, "SLOWEST_BYTES_PER_S", piece // 2 if status == 202 else piece * 9
    )

    async def steadily():
        for start in range(0, len(body), piece):
            yield body[start : start + piece]
            await asyncio.sleep(0.6)

    async with serving(engines, store, WDS_BODY_TIMEOUT=str(timeout_s)) as (port, session):
        url = f"http://127.0.0.1:{port}{PATH}"
        began = time.monotonic()
        with suppress(aiohttp.ClientError):
            async with session.post(url, data=steadily(), headers=signed(body)) as response:
                assert response.status == status
        if status == 202:
            assert time.monotonic() - began > timeout_s
    assert await db.events.count_documents({}) == (status == 202)


@pytest.mark.parametrize("path", [PATH, f"{PATH}/batch"])
async def test_a_store_that_stalls_is_answered_503_at_once(
    engines,
    store,
    db,  # noqa: ARG001
    monkeypatch,
    path,
):
    """And the first, who waits for the write, is acknowledged when it is done."""
    monkeypatch.setattr(ingest, "MAX_WAIT_S", 0.2)
    body = BODY if path == PATH else b"[" + BODY + b"]"
    async with serving(engines, store) as (port, session):
        url = f"http://127.0.0.1:{port}{path}"

        async def send():
            async with session.post(url, data=body, headers=signed(body)) as response:
                await response.read()
                return response.status, response.headers.get("Retry-After")

        assert (await send())[0] == 202
        waiting, go_on = stalling(monkeypatch)
        first = asyncio.create_task(send())
        await waiting.wait()
        await asyncio.sleep(0.4)
        answers = await asyncio.gather(*(send() for _ in range(20)))
        assert set(answers) == {(503, "2")}
        assert not first.done()  # nobody waited for what stalls
        go_on.set()
        assert (await first)[0] == 202
        assert (await send())[0] == 202
