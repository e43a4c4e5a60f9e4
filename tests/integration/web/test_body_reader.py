"""Limits and the budget also apply to bodies that arrive in one piece with their headers."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aiohttp import web
from prometheus_client import REGISTRY

from tests.support import eventually
from wds.web import body_reader
from wds.web.body_reader import BodyReader
from wds.web.server import listening, new_app

MAX_BODY = 1000
LENGTH = 600


def held():
    return REGISTRY.get_sample_value("wds_body_bytes")


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
    """Serve a handler that waits; yield the port and the event that ends the wait."""
    reader = BodyReader(
        max_body=MAX_BODY, budget=7 * (body_reader.OVERHEAD_BYTES + LENGTH) - 1, timeout_s=2
    )
    app = new_app(MAX_BODY, inside=[reader.middleware])
    go_on = asyncio.Event()

    async def wait(request):
        await go_on.wait()
        return web.Response(body=await request.read())

    app.router.add_post("/", wait)
    async with listening(app, "127.0.0.1", 0) as port:
        yield port, go_on


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
async def test_body_reader_refuses_a_body_in_one_piece_that_is_too_long(wrap):
    async with serving() as (port, go_on):
        go_on.set()
        async with sent(port, wrap(b"x" * MAX_BODY)) as reader:
            assert await status(reader) == 200
        async with sent(port, wrap(b"x" * (MAX_BODY + 1))) as reader:
            assert await status(reader) == 413


@pytest.mark.parametrize("wrap", [with_length, in_chunks])
async def test_body_reader_charges_a_body_until_it_is_answered(wrap):
    async with serving() as (port, go_on), sent(port, wrap(b"x" * LENGTH)) as reader:
        await eventually(
            held,
            lambda held: held == body_reader.OVERHEAD_BYTES + LENGTH,
        )
        go_on.set()
        assert await status(reader) == 200
        assert held() == 0


async def test_body_reader_refuses_bodies_beyond_the_budget():
    """Six bodies leave room for the overhead of a seventh request, but not for its body."""
    async with serving() as (port, go_on), AsyncExitStack() as stack:
        request = with_length(b"x" * LENGTH)
        readers = [await stack.enter_async_context(sent(port, request)) for _ in range(6)]
        await eventually(
            held,
            lambda held: held == 6 * (body_reader.OVERHEAD_BYTES + LENGTH),
        )
        async with sent(port, request) as seventh:
            assert await status(seventh) == 503
        go_on.set()
        assert [await status(reader) for reader in readers] == [200] * 6


async def test_body_reader_leaves_the_body_of_an_unknown_route_unread():
    request = head(f"Content-Length: {LENGTH}", path="/nowhere").encode()
    async with serving() as (port, _), sent(port, request) as reader:
        assert await status(reader) == 404
        assert held() == 0
