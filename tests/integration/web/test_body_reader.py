"""Bodies that come in one piece with their headers are bounded and counted like all others."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aiohttp import web

from tests.support import eventually
from wds.web import body_reader
from wds.web.body_reader import Intake
from wds.web.server import listening, new_app

MAX_BODY = 1000
LENGTH = 600


def head(*lines, path="/"):
    return "".join(f"{line}\r\n" for line in (f"POST {path} HTTP/1.1", "Host: wds", *lines, ""))


def with_length(body):
    return head(f"Content-Length: {len(body)}").encode() + body


def in_chunks(body):
    return head("Transfer-Encoding: chunked").encode() + b"%x\r\n%s\r\n0\r\n\r\n" % (
        len(body),
        body,
    )


@asynccontextmanager
async def serving():
    """Serve a handler that waits; give the intake, the port, and what lets the handler go on."""
    made = Intake(
        max_body=MAX_BODY, budget=7 * (body_reader.OVERHEAD_BYTES + LENGTH) - 1, timeout_s=2
    )
    app = new_app(MAX_BODY, inside=[made.middleware])
    go_on = asyncio.Event()

    async def wait(request):
        await go_on.wait()
        return web.Response(body=await request.read())

    app.router.add_post("/", wait)
    async with listening(app, "127.0.0.1", 0) as port:
        yield made, port, go_on


@asynccontextmanager
async def sent(port, request):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        yield reader
    finally:
        writer.transport.abort()


async def status(reader):
    return int((await asyncio.wait_for(reader.readline(), 15)).split()[1])


@pytest.mark.parametrize("wrap", [with_length, in_chunks])
async def test_a_body_in_one_piece_that_is_too_long_is_refused(wrap):
    async with serving() as (_, port, go_on):
        go_on.set()
        async with sent(port, wrap(b"x" * MAX_BODY)) as reader:
            assert await status(reader) == 200
        async with sent(port, wrap(b"x" * (MAX_BODY + 1))) as reader:
            assert await status(reader) == 413


@pytest.mark.parametrize("wrap", [with_length, in_chunks])
async def test_a_body_in_one_piece_counts_until_it_is_answered(wrap):
    async with serving() as (made, port, go_on), sent(port, wrap(b"x" * LENGTH)) as reader:
        await eventually(
            lambda: made._held,
            lambda held: held == body_reader.OVERHEAD_BYTES + LENGTH,
        )
        go_on.set()
        assert await status(reader) == 200
        assert made._held == 0


async def test_bodies_in_one_piece_that_wait_fill_the_budget():
    """Six of them leave less than a seventh needs, although there is room for its overhead."""
    async with serving() as (made, port, go_on), AsyncExitStack() as stack:
        request = with_length(b"x" * LENGTH)
        readers = [await stack.enter_async_context(sent(port, request)) for _ in range(6)]
        await eventually(
            lambda: made._held,
            lambda held: held == 6 * (body_reader.OVERHEAD_BYTES + LENGTH),
        )
        async with sent(port, request) as seventh:
            assert await status(seventh) == 503
        go_on.set()
        assert [await status(reader) for reader in readers] == [200] * 6


async def test_nobody_waits_for_the_body_of_a_request_that_no_route_takes():
    request = head(f"Content-Length: {LENGTH}", path="/nowhere").encode()
    async with serving() as (made, port, _), sent(port, request) as reader:
        assert await status(reader) == 404
        assert made._held == 0
