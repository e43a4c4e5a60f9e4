"""Every status with every kind of `Retry-After` follows the documented retry policy."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from tests.support import make_destination, send
from wds.delivery.http_client import HttpClient
from wds.domain.attempt_results import settlement
from wds.domain.deliveries import Claim, Status
from wds.domain.retry_policy import RETRY_AFTER_CAP_S

DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
RETRY_AFTER = {
    "none": (None, 0),
    "seconds": ("7", 7),
    "date": ("Thu, 01 Jan 2026 00:00:09 GMT", 9),
    "past": ("Wed, 31 Dec 2025 00:00:00 GMT", 0),
    "huge": ("9" * 40, RETRY_AFTER_CAP_S),
    "garbage": ("in a \x7f while", 0),
}
SCHEDULE = (1.0, 2.0, 4.0, 8.0)


@asynccontextmanager
async def answering(answers: asyncio.Queue[bytes]):
    """Serve the prepared answers in turn, each on a connection of its own."""

    async def handle(reader, writer):
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(await answers.get())
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


def claim_of(number: int) -> Claim:
    now = time.monotonic()
    return Claim(
        "0" * 32, "t", number, datetime.now(UTC), now, now + 60, "default", None, "a/b", b""
    )


@pytest.mark.parametrize("kind", RETRY_AFTER)
async def test_settlement_follows_the_policy_for_every_status(kind):
    value, retry_after_s = RETRY_AFTER[kind]
    header = "" if value is None else f"Retry-After: {value}\r\n"
    answers: asyncio.Queue[bytes] = asyncio.Queue()
    async with answering(answers) as url:
        destination = make_destination(url, backoff=SCHEDULE, max_attempts=5)
        client = HttpClient(destination)
        for status in range(100, 600):
            number = status % 5 + 1
            head = f"HTTP/1.1 {status} Any\r\nDate: {DATE}\r\n{header}Connection: close\r\n"
            answers.put_nowait(f"{head}Content-Length: 0\r\n\r\n".encode())
            claim = claim_of(number)
            result = await send(client, claim)
            ended = settlement(claim, result, destination)
            interim = status < 200  # followed by nothing: no answer at all
            assert result.status_code == (None if interim and status != 101 else status)
            if 200 <= status < 300:
                assert ended.status is Status.DELIVERED
            elif number == 5:
                assert ended.status is Status.FAILED_PERMANENTLY
            else:
                assert ended.status is Status.DELIVERING
                read_s = 0 if result.status_code is None else retry_after_s
                assert ended.delay_s == max(SCHEDULE[number - 1], read_s)
        await client.close()
