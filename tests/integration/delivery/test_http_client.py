"""One request to well-behaved and hostile receivers: it ends, and its result says what happened."""

from __future__ import annotations

import asyncio
import functools
import operator
import resource
import time
import zlib
from base64 import b64encode
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from aiohttp import TCPConnector, web

from tests.support import eventually, make_destination, receiving, send
from wds import __version__
from wds.delivery.http_client import KEPT_RESPONSE_BYTES, HttpClient
from wds.domain.attempt_results import (
    MAX_ERROR_LENGTH,
    BrokenAnswer,
    Delivered,
    NotSent,
    Phase,
    Rejected,
    TimedOut,
    Unreachable,
    error_text,
)
from wds.domain.deliveries import Claim
from wds.local import embedded_engines
from wds.storage.mongo import uptime

PAYLOAD = b'{ "exact" :\n  "bytes \xc3\xa9" }'
TIMEOUT_S = 15.0
"""For a receiver that answers; others get a short one."""
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


@asynccontextmanager
async def client_of(url: str, **changes):
    client = HttpClient(make_destination(url, **changes))
    try:
        yield client
    finally:
        await client.close()


async def attempt(url: str, timeout_s: float = TIMEOUT_S):
    async with client_of(url, timeout_s=timeout_s) as client:
        return await send(client, claim())


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


async def test_request_has_the_exact_bytes_and_the_attempt_number():
    async with receiving() as receiver:
        result = await attempt(receiver.url)
    [request] = receiver.requests
    assert isinstance(result, Delivered)
    assert (result.status_code, error_text(result), result.response) == (200, None, "ok")
    assert request.body == PAYLOAD
    assert request.headers["Content-Type"] == "application/json; charset=utf-8"
    assert request.headers["webhook-id"] == "0" * 32
    assert request.headers["webhook-attempt"] == "2"
    assert request.headers["User-Agent"] == f"wds/{__version__}"
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 5


async def test_send_adds_its_headers_to_this_request_only():
    async with receiving() as receiver, client_of(receiver.url) as client:
        await send(client, claim(), {"traceparent": "now"})
        await send(client, claim())
    first, second = receiver.requests
    assert first.headers["traceparent"] == "now"
    assert "traceparent" not in second.headers


async def test_request_that_is_not_sent_never_reaches_the_receiver():
    async with (
        receiving() as receiver,
        client_of(receiver.url) as client,
        client.connect(claim()) as request,
    ):
        assert request.is_open
    assert receiver.requests == []


@pytest.mark.parametrize("status", [200, 201, 204, 299])
async def test_send_returns_delivered_for_every_2xx(status):
    async with receiving() as receiver:
        receiver.answer = lambda _: _respond(web.Response(status=status))
        result = await attempt(receiver.url)
    assert isinstance(result, Delivered)
    assert (result.status_code, error_text(result)) == (status, None)


@pytest.mark.parametrize("status", [300, 301, 302, 304, 307, 308, 400, 404, 410, 429, 500, 599])
async def test_send_returns_rejected_for_other_statuses_and_follows_no_redirect(status):
    async with receiving() as receiver:
        headers = {"Location": receiver.url}
        receiver.answer = lambda _: _respond(web.Response(status=status, headers=headers))
        result = await attempt(receiver.url)
    assert isinstance(result, Rejected)
    assert (result.status_code, error_text(result)) == (status, f"HTTP {status}")
    assert len(receiver.requests) == 1


async def _respond(response: web.Response) -> web.Response:
    return response


async def test_response_is_the_first_kib_with_undecodable_bytes_replaced():
    async with receiving() as receiver:
        receiver.answer = lambda _: _respond(web.Response(body=b"\xff" + b"x" * 9000))
        result = await attempt(receiver.url)
    assert result.response == "\ufffd" + "x" * (KEPT_RESPONSE_BYTES - 1)


async def test_client_keeps_no_cookies_of_the_receiver():
    async with receiving() as receiver:
        headers = {"Set-Cookie": "a=b"}
        receiver.answer = lambda _: _respond(web.Response(headers=headers))
        async with client_of(receiver.url, max_in_flight=1) as client:
            await send(client, claim())
            await send(client, claim())
    assert "Cookie" not in receiver.requests[1].headers


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), ("Thu, 01 Jan 2026 00:00:30 GMT", 30), ("99999999", 300), ("soon", 0), ("-3", 0)],
)
async def test_retry_after_s_is_measured_by_the_receivers_own_clock(value, seconds):
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
async def test_send_ends_with_the_timeout_of_the_destination(answer):
    async with raw_downstream(answer) as url:
        started = time.monotonic()
        result = await attempt(url, SHORT_S)
    assert isinstance(result, TimedOut)
    assert result.phase is Phase.ANSWER
    assert error_text(result) == f"no complete answer within {SHORT_S:g} s"
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
async def test_send_takes_little_memory_for_an_endless_or_exploding_answer(answer):
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
async def test_send_returns_broken_answer_with_a_short_reason(answer):
    async with raw_downstream(answer) as url:
        result = await attempt(url)
    assert isinstance(result, BrokenAnswer)
    assert error_text(result)
    assert len(error_text(result)) <= MAX_ERROR_LENGTH == 300


async def test_connect_failure_does_not_repeat_the_url_which_may_hold_a_secret():
    async with raw_downstream(garbage) as url:
        results = [await attempt(f"{url}?token=s3cret"), await attempt(f"{url}hook/s3cret")]
    assert "s3cret" not in repr(results)


async def test_request_leaves_at_send_over_a_connection_made_before():
    """Five of them. Before the first, the caller waits for longer than the timeout."""
    connected = asyncio.Event()
    arrived: list[float] = []
    timeout_s = 4.0
    waits = [timeout_s + 0.2, 0.1, 0.1, 0.1, 0.1]

    async def handle(reader, writer):
        connected.set()
        await reader.readuntil(b"\r\n\r\n")
        arrived.append(time.monotonic())
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    called_at: list[float] = []
    results = []
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with client_of(url, timeout_s=timeout_s, max_in_flight=1) as client:
            for wait_s in waits:
                async with client.connect(claim()) as request:
                    await connected.wait()
                    connected.clear()
                    await asyncio.sleep(wait_s)
                    called_at.append(time.monotonic())
                    results.append(await request.send({}))
    assert [type(result) for result in results] == [Delivered] * 5
    sent_at = [result.sent_at for result in results]
    assert all(map(operator.le, called_at, sent_at))
    assert all(map(operator.le, sent_at, arrived))
    # The machine may pause in any one of them, but hardly in all.
    assert min(map(operator.sub, sent_at, called_at)) < 0.05
    assert min(map(operator.sub, arrived, called_at)) < 0.1
    assert results[0].duration_ms < timeout_s * 1000


async def test_connect_keeps_an_unused_connection_for_the_next_request():
    transports = []

    async def handle(reader, writer):
        transports.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with client_of(url, max_in_flight=1) as client:
            for _ in range(3):
                async with client.connect(claim()):
                    pass
            assert isinstance(await send(client, claim()), Delivered)
        for each in transports:
            each.close()
    assert len(transports) == 1


async def test_send_over_a_connection_that_was_closed_meanwhile_sends_nothing():
    async def handle(_, writer):
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with client_of(url) as client, client.connect(claim()) as request:
            await eventually(lambda: not request.is_open)
            assert isinstance(await request.send({}), NotSent)


@pytest.mark.alone
async def test_send_does_not_round_the_timeout_up():
    """Aiohttp's own total would end at the next whole second above five seconds."""
    async with raw_downstream(hang) as url:
        for _ in range(3):  # until the machine was fast enough to tell
            started = time.monotonic()
            await attempt(url, 5.05)
            took = time.monotonic() - started
            if took < 5.5:
                break
    assert 5.05 <= took < 5.5


async def test_connect_to_a_closed_port_returns_unreachable():
    result = await attempt(f"http://127.0.0.1:{embedded_engines.free_port()}/")
    assert isinstance(result, Unreachable)
    assert result.phase is Phase.CONNECT
    assert (result.status_code, result.response) == (None, None)
    assert "Cannot connect" in (error_text(result) or "")


async def test_connect_to_an_unknown_host_fails_in_the_look_up():
    result = await attempt("http://host.invalid/")
    assert isinstance(result, Unreachable)
    assert result.phase is Phase.LOOK_UP


async def test_connect_to_a_port_without_tls_fails_in_the_handshake():
    async with raw_downstream(garbage) as url:
        result = await attempt(url.replace("http:", "https:"), SHORT_S)
    assert (isinstance(result, Unreachable) and result.phase is Phase.TLS_HANDSHAKE) or (
        isinstance(result, TimedOut) and result.phase is Phase.CONNECT
    )


async def test_connect_ends_with_the_timeout_of_the_destination(monkeypatch):
    async def never(*_):
        await asyncio.Event().wait()

    monkeypatch.setattr(TCPConnector, "_create_connection", never)
    result = await attempt("http://127.0.0.1:9/", SHORT_S)
    assert isinstance(result, TimedOut)
    assert result.phase is Phase.CONNECT
    assert error_text(result) == f"no complete answer within {SHORT_S:g} s"


async def test_credentials_in_the_url_become_a_header():
    async with receiving() as receiver:
        await attempt(receiver.url.replace("http://", "http://ann:s3cret@"))
    [request] = receiver.requests
    assert request.headers["Authorization"] == "Basic " + b64encode(b"ann:s3cret").decode()


async def test_connection_that_the_receiver_closed_while_idle_is_replaced():
    """A receiver may close idle connections at any time; the next attempt opens a new one."""

    async def once(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    async with raw_downstream(once) as url, client_of(url, max_in_flight=1) as client:
        results = []
        for _ in range(3):
            results.append(await send(client, claim()))
            await asyncio.sleep(0.05)  # lets the close arrive
    assert [type(result) for result in results] == [Delivered] * 3


@pytest.mark.parametrize("answer", [hang, drip])
async def test_connection_of_a_failed_request_is_not_used_again(answer):
    """What is left of the old answer would be read as the next one's."""
    async with raw_downstream(answer) as url, client_of(url, timeout_s=SHORT_S) as client:
        await send(client, claim())
        assert not client.connector._conns
        assert not client.connector._acquired
