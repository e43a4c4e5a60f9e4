"""A downstream that misbehaves in every way before it accepts: no event fails permanently."""

from __future__ import annotations

import asyncio
import zlib
from contextlib import asynccontextmanager

from tests.faults.harness import system


async def hang(_):
    await asyncio.sleep(5)


async def drip(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
    for _ in range(50):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.1)


async def garbage(writer):
    writer.write(b"\x00\xff not http at all\r\n\r\n")
    await writer.drain()


async def reset(writer):
    writer.transport.abort()


async def cut_short(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nonly this")
    await writer.drain()


def packed_zeros(megabytes: int) -> bytes:
    squeeze = zlib.compressobj(wbits=31)
    return b"".join(squeeze.compress(bytes(10**6)) for _ in range(megabytes)) + squeeze.flush()


BOMB = packed_zeros(50)


async def bomb_with_500(writer):
    head = "HTTP/1.1 500 No\r\nContent-Encoding: gzip\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(BOMB)}\r\n\r\n".encode() + BOMB)
    await writer.drain()


async def accept(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
    await writer.drain()


BEHAVIOURS = [hang, drip, garbage, reset, cut_short, bomb_with_500, accept]


@asynccontextmanager
async def misbehaving():
    """Answer attempt n of each event by the nth of `BEHAVIOURS`."""

    async def handle(reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            number = int(head.split("webhook-attempt: ")[1].split("\r\n")[0])
            await BEHAVIOURS[number - 1](writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def test_downstream_misbehaviour_fails_attempts_and_the_event_arrives(tmp_path, seed):
    async with misbehaving() as url:
        settings = {"WDS_DOWNSTREAM_URL": url}
        async with system(tmp_path, seed=seed, ingests=1, settings=settings) as running:
            await running.sender.send(40)
            await running.settled(40, within_s=60)
            documents = await running.db.events.find().to_list(None)
    assert {each["status"] for each in documents} == {"DELIVERED"}
    timeout_ms = float(running.env["WDS_REQUEST_TIMEOUT"]) * 1000
    for each in documents:
        outcomes = [attempt["outcome"] for attempt in each["attempts"]]
        assert outcomes == ["failure"] * (len(BEHAVIOURS) - 1) + ["success"]
        assert max(attempt["duration_ms"] for attempt in each["attempts"]) <= timeout_ms + 1000
