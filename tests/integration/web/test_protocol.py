"""Many requests on one connection: each is answered, and what waits takes little memory."""

from __future__ import annotations

import asyncio
import gc
import re
import time
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import streams, web
from structlog.testing import capture_logs

from tests.support import eventually
from wds.web import protocol
from wds.web.body_reader import Intake
from wds.web.server import healthz, listening, new_app

MIB = 1024 * 1024
MOST_HELD = 512 * 1024
"""What docs/operations.md promises of one connection."""


def post(body=b"{}", *headers, version="HTTP/1.1"):
    lines = (f"POST /echo {version}", "Host: wds", *headers, f"Content-Length: {len(body)}")
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode() + body


def chunks(body, size):
    parts = (body[start : start + size] for start in range(0, len(body), size))
    head = b"POST /echo HTTP/1.1\r\nHost: wds\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


GET = b"GET /healthz HTTP/1.1\r\nHost: wds\r\n\r\n"
LATE = post()[:-2]
"""A request but for its body of two bytes."""


@asynccontextmanager
async def serving(busy=None):
    """Serve what counts a body's bytes, after `busy` is set; the value is the port."""
    intake = Intake(max_body=4 * MIB, budget=64 * MIB, timeout_s=4)
    app = new_app(4 * MIB, inside=[intake.middleware])

    async def echo(request):
        if busy is not None:
            await busy.wait()
        return web.Response(text=f"{len(await request.read())}\n")

    async def large(_):
        return web.Response(body=bytes(8 * MIB))

    app.router.add_post("/echo", echo)
    app.router.add_get("/large", large)
    app.router.add_get("/healthz", healthz)
    async with listening(app, "127.0.0.1", 0) as port:
        yield port


async def statuses(port, parts, wanted, within_s=15.0):
    """Write `parts`, a moment between them; return the statuses of what is answered in time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers = b""

    def found():
        return [int(each) for each in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answers)]

    async def read():
        nonlocal answers
        while len(found()) < wanted:
            chunk = await reader.read(65536)
            if not chunk:
                return
            answers += chunk

    reading = asyncio.create_task(read())
    try:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.05)
        with suppress(TimeoutError):
            await asyncio.wait_for(reading, within_s)
    finally:
        writer.transport.abort()
    return found()


PIPELINED = {
    "40 at once": [post() * 40],
    "40 behind a body that comes late": [LATE, b"{}" + post() * 40],
    "400 behind a body that comes late": [LATE, b"{}" + post() * 400],
    "100 without a body behind one that comes late": [LATE, b"{}" + GET * 100],
    "100 without a body after one that came late": [LATE, b"{}", GET * 100],
    "as many chunks as may wait, then others": [chunks(b"x" * 4097, 1) + post() * 3],
    "tiny chunks thrice": [chunks(b"x" * 20_000, 1) * 3],
    "large ones": [post(b"x" * 300_000) * 8],
    "a large one that comes late, then others": [
        post(b"x" * MIB)[:-MIB],
        b"x" * MIB + post() * 40,
    ],
    "large ones in chunks": [chunks(b"x" * MIB, 1000) * 3 + post() * 40],
    "40 in odd pieces": [(post() * 40)[at : at + 700] for at in range(0, len(post() * 40), 700)],
}


@pytest.mark.parametrize("parts", PIPELINED.values(), ids=PIPELINED)
async def test_every_request_on_a_connection_is_answered(parts):
    sent = sum(part.count(b" HTTP/1.1\r\n") for part in parts)
    async with serving() as port:
        assert await statuses(port, parts, sent) == [200] * sent


async def test_with_a_longer_queue_the_parser_may_keep_the_rest(monkeypatch):
    """The control of the test above: aiohttp's own length."""
    monkeypatch.setattr(protocol, "MAX_QUEUED", 32)
    parts = PIPELINED["100 without a body after one that came late"]
    async with serving() as port:
        assert len(await statuses(port, parts, 101, within_s=2.0)) < 101


async def test_a_body_that_waits_for_the_go_ahead_is_taken_with_all_that_follows():
    head = post(b"x" * 400_000, "Expect: 100-continue")[:-400_000]
    async with serving() as port:
        found = await statuses(port, [head, b"x" * 400_000 + post() * 50], 52)
    assert found == [100, *[200] * 51]


@pytest.mark.parametrize("size", [2, 120_000, 250_000, 2 * MIB])
async def test_what_waits_behind_a_busy_request_takes_little_memory(size):
    busy = asyncio.Event()
    body = b"x" * size
    gc.collect()
    async with serving(busy) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(body) * 20)
        for _ in range(10):
            await asyncio.sleep(0.05)
            held = sum(
                each._size for each in gc.get_objects() if type(each) is streams.StreamReader
            )
            assert held <= MOST_HELD
        busy.set()
        answers = [await reader.readuntil(b"%d\n" % size) for _ in range(20)]
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
        writer.transport.abort()


@pytest.mark.parametrize(
    "before",
    [
        post() * 40,
        LATE + b"{}" + GET * 40,
        post(b"{}", "Connection: Upgrade", "Upgrade: websocket"),
    ],
    ids=["many", "many without a body", "an upgrade"],
)
async def test_another_version_is_refused_wherever_it_comes(before):
    sent = before.count(b" HTTP/1.1\r\n")
    async with serving() as port:
        found = await statuses(port, [before + post(version="HTTP/2.0")], sent + 1)
    assert found == [*[200] * sent, 400]


LARGE = b"GET /large HTTP/1.1\r\nHost: wds\r\n\r\n"


async def test_a_client_who_takes_nothing_of_its_answers_is_cut_off(monkeypatch):
    monkeypatch.setattr(protocol, "ANSWER_S", 0.3)
    async with serving() as port:
        with capture_logs() as lines:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(LARGE * 20)
            await eventually(lambda: [line["event"] for line in lines])
        taken = 0
        with suppress(ConnectionError):
            while chunk := await reader.read(MIB):
                taken += len(chunk)
        writer.transport.abort()
    assert lines == [{"event": "answer_untaken", "log_level": "info", "remote": "127.0.0.1"}]
    assert taken < 20 * 8 * MIB


async def test_a_client_who_is_slow_to_take_its_answer_gets_all_of_it(monkeypatch):
    monkeypatch.setattr(protocol, "ANSWER_S", 0.3)
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(LARGE * 3)
        taken = 0
        began = time.monotonic()
        while taken < 3 * 8 * MIB:
            taken += len(await reader.readexactly(MIB))
            await asyncio.sleep(0.1)  # an answer takes longer than it may take without progress
        assert time.monotonic() - began > 2
        writer.transport.abort()
