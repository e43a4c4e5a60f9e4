"""One attempt against downstreams of every temper: it ends, and its result says what happened."""

from __future__ import annotations

import asyncio
import functools
import operator
import resource
import time
import zlib
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from aiohttp import web

from tests.support import receiving
from wds import __version__
from wds.delivery.http_client import KEPT_RESPONSE_BYTES, Deliverer, NotSentError
from wds.domain.deliveries import Claim
from wds.local import embedded_engines
from wds.storage.mongo import uptime

PAYLOAD = b'{ "exact" :\n  "bytes \xc3\xa9" }'
TIMEOUT_S = 15.0
"""For a downstream that answers; others get a short one."""
SHORT_S = 0.5


def claim(payload: bytes = PAYLOAD) -> Claim:
    return Claim(
        id="0" * 32,
        token="t",
        attempt_number=2,
        leased_at=datetime.now(UTC),
        held_since=time.monotonic(),
        trusted_until=uptime() + 30,
        destination="default",
        event_type=None,
        content_type="application/json; charset=utf-8",
        payload=payload,
    )


async def attempt(url: str, timeout_s: float = TIMEOUT_S):
    deliverer = Deliverer(url, timeout_s=timeout_s, connections=4)
    try:
        return await deliverer.post(claim())
    finally:
        await deliverer.close()


@asynccontextmanager
async def raw_downstream(answer):
    """Serve `answer(writer)` to every connection, once a request's head has arrived."""
    handlers = set()

    async def handle(reader, writer):
        handlers.add(asyncio.current_task())
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield f"http://127.0.0.1:{port}/"
        for handler in handlers:
            handler.cancel()  # from Python 3.12 on, closing a server waits for them


async def test_a_request_carries_the_exact_bytes_and_says_which_attempt_it_is():
    async with receiving() as receiver:
        result = await attempt(receiver.url)
    [request] = receiver.requests
    assert (result.status_code, result.error, result.response) == (200, None, "ok")
    assert request.body == PAYLOAD
    assert request.headers["Content-Type"] == "application/json; charset=utf-8"
    assert request.headers["webhook-id"] == "0" * 32
    assert request.headers["webhook-attempt"] == "2"
    assert request.headers["User-Agent"] == f"wds/{__version__}"
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 5


async def test_headers_that_are_known_only_when_the_request_leaves_are_added_then():
    steps = []

    async def gate():
        steps.append("gate")
        return True

    def leaving():
        steps.append("leaving")
        return {"traceparent": "now"}

    async with receiving() as receiver:
        deliverer = Deliverer(receiver.url, timeout_s=TIMEOUT_S, connections=4)
        await deliverer.post(claim(), gate, leaving)
        await deliverer.post(claim())
        await deliverer.close()
    first, second = receiver.requests
    assert steps == ["gate", "leaving"]
    assert first.headers["traceparent"] == "now"
    assert "traceparent" not in second.headers


async def test_nothing_leaves_through_a_gate_that_stays_shut():
    async def shut():
        return False

    def leaving():
        raise AssertionError

    async with receiving() as receiver:
        deliverer = Deliverer(receiver.url, timeout_s=TIMEOUT_S, connections=4)
        with pytest.raises(NotSentError):
            await deliverer.post(claim(), shut, leaving)
        await deliverer.close()
    assert receiver.requests == []


@pytest.mark.parametrize("status", [200, 201, 204, 299])
async def test_every_2xx_is_success(status):
    async with receiving() as receiver:
        receiver.answer = lambda _: _respond(web.Response(status=status))
        result = await attempt(receiver.url)
    assert (result.status_code, result.error) == (status, None)


@pytest.mark.parametrize("status", [300, 301, 302, 304, 307, 308, 400, 404, 410, 429, 500, 599])
async def test_everything_else_is_failure_and_no_redirect_is_followed(status):
    async with receiving() as receiver:
        headers = {"Location": receiver.url}
        receiver.answer = lambda _: _respond(web.Response(status=status, headers=headers))
        result = await attempt(receiver.url)
    assert (result.status_code, result.error) == (status, f"HTTP {status}")
    assert len(receiver.requests) == 1


async def _respond(response: web.Response) -> web.Response:
    return response


async def test_only_the_first_kib_of_an_answer_is_kept_and_garbage_is_replaced():
    async with receiving() as receiver:
        receiver.answer = lambda _: _respond(web.Response(body=b"\xff" + b"x" * 9000))
        result = await attempt(receiver.url)
    assert result.response == "\ufffd" + "x" * (KEPT_RESPONSE_BYTES - 1)


async def test_cookies_of_the_downstream_are_not_kept():
    async with receiving() as receiver:
        headers = {"Set-Cookie": "a=b"}
        receiver.answer = lambda _: _respond(web.Response(headers=headers))
        deliverer = Deliverer(receiver.url, timeout_s=TIMEOUT_S, connections=1)
        await deliverer.post(claim())
        await deliverer.post(claim())
        await deliverer.close()
    assert "Cookie" not in receiver.requests[1].headers


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), ("Thu, 01 Jan 2026 00:00:30 GMT", 30), ("99999999", 300), ("soon", 0), ("-3", 0)],
)
async def test_what_retry_after_asks_for_is_measured_by_the_downstreams_own_clock(value, seconds):
    async with receiving() as receiver:
        headers = {"Retry-After": value, "Date": "Thu, 01 Jan 2026 00:00:00 GMT"}
        receiver.answer = lambda _: _respond(web.Response(status=503, headers=headers))
        result = await attempt(receiver.url)
    assert result.retry_after_s == seconds


async def hang(_):
    await asyncio.sleep(30)


async def drip(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.1)


async def drip_head(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("answer", [hang, drip, drip_head])
async def test_an_attempt_ends_with_its_timeout(answer):
    async with raw_downstream(answer) as url:
        started = time.monotonic()
        result = await attempt(url, SHORT_S)
    assert result.error == f"no complete answer within {SHORT_S:g} s"
    assert SHORT_S <= time.monotonic() - started < TIMEOUT_S


async def endless(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


@functools.cache
def packed_bomb() -> bytes:
    """Return 100 MB of zeros, compressed; making it takes a second."""
    squeeze = zlib.compressobj(wbits=31)
    return b"".join(squeeze.compress(bytes(1_000_000)) for _ in range(100)) + squeeze.flush()


async def bomb(writer):
    packed = packed_bomb()
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
    writer.write(head.encode() + packed)
    await writer.drain()


@pytest.mark.parametrize("answer", [endless, bomb])
async def test_an_endless_or_exploding_answer_takes_no_memory(answer):
    packed_bomb()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with raw_downstream(answer) as url:
        result = await attempt(url)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert result.status_code == 200
    assert grown_kib < 50 * 1024


async def garbage(writer):
    writer.write(b"\x00\xff not http at all \r\n\r\n")
    await writer.drain()


async def huge_header(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n")
    await writer.drain()


async def reset(writer):
    writer.transport.abort()


async def cut_short(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nonly this")
    await writer.drain()


@pytest.mark.parametrize("answer", [garbage, huge_header, reset, cut_short])
async def test_a_broken_answer_is_a_failure_with_a_reason(answer):
    async with raw_downstream(answer) as url:
        result = await attempt(url)
    assert result.error
    assert len(result.error) <= 300


async def test_a_reason_does_not_repeat_the_url_which_may_hold_a_secret():
    async with raw_downstream(garbage) as url:
        results = [await attempt(f"{url}?token=s3cret"), await attempt(f"{url}hook/s3cret")]
    assert "s3cret" not in repr(results)


async def test_a_request_leaves_when_its_gate_opens_over_a_connection_made_before():
    """Five of them, the first waiting at its gate for longer than an attempt may take."""
    connected = asyncio.Event()
    gone: list[float] = []
    timeout_s = 4.0
    waits = iter([timeout_s + 0.2, 0.1, 0.1, 0.1, 0.1])

    async def handle(reader, writer):
        connected.set()
        await reader.readuntil(b"\r\n\r\n")
        gone.append(time.monotonic())
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    opened_at: list[float] = []

    async def gate() -> bool:
        await connected.wait()
        connected.clear()
        await asyncio.sleep(next(waits))
        opened_at.append(time.monotonic())
        return True

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        deliverer = Deliverer(url, timeout_s=timeout_s, connections=1)
        results = [await deliverer.post(claim(), gate) for _ in range(5)]
        await deliverer.close()
    assert [result.error for result in results] == [None] * 5
    sent_at = [result.sent_at for result in results]
    assert all(map(operator.le, opened_at, sent_at))
    assert all(map(operator.le, sent_at, gone))
    # Each could have met a pause of the machine, all of them hardly.
    assert min(map(operator.sub, sent_at, opened_at)) < 0.05
    assert min(map(operator.sub, gone, opened_at)) < 0.1
    assert results[0].duration_ms < timeout_s * 1000


async def test_behind_a_shut_gate_no_request_is_made_and_the_connection_is_kept():
    async def shut() -> bool:
        return False

    async with receiving() as receiver:
        deliverer = Deliverer(receiver.url, timeout_s=TIMEOUT_S, connections=1)
        for _ in range(3):
            with pytest.raises(NotSentError):
                await deliverer.post(claim(), shut)
        assert receiver.requests == []
        assert (await deliverer.post(claim())).error is None
        await deliverer.close()


@pytest.mark.alone
async def test_the_timeout_is_not_rounded_up():
    """Aiohttp's own total would end at the next whole second above five seconds."""
    async with raw_downstream(hang) as url:
        for _ in range(3):  # until the machine was fast enough to tell
            started = time.monotonic()
            await attempt(url, 5.05)
            took = time.monotonic() - started
            if took < 5.5:
                break
    assert 5.05 <= took < 5.5


async def test_nobody_listening_is_a_failure_without_a_status():
    result = await attempt(f"http://127.0.0.1:{embedded_engines.free_port()}/")
    assert result.status_code is None
    assert result.response is None
    assert "Cannot connect" in (result.error or "")


async def test_a_kept_connection_that_the_downstream_closed_is_not_a_failure():
    """A receiver may drop idle connections at any time; the next attempt opens a new one."""

    async def once(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    async with raw_downstream(once) as url:
        deliverer = Deliverer(url, timeout_s=TIMEOUT_S, connections=1)
        results = []
        for _ in range(3):
            results.append(await deliverer.post(claim()))
            await asyncio.sleep(0.05)  # lets the close arrive
        await deliverer.close()
    assert [result.error for result in results] == [None] * 3
