"""A receiver in a process of its own, so that nothing delays the reading of its clock.

`python -m tests.faults.receiver` prints the URL to send to, and answers `GET /requests` with the
requests that it has recorded. Its instants are of the monotonic clock, which all processes of the
machine share.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from tests.support import Receiver, Request
from wds.web.server import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Apart(Receiver):
    """A receiver in another process; `fetch` copies what it has recorded."""

    async def fetch(self) -> None:
        """Replace `requests` by what the process has recorded so far."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(self.url.replace("/hook", "/requests")) as response,
        ):
            self.requests = [Request(**each) for each in await response.json()]


@asynccontextmanager
async def receiving_apart() -> AsyncIterator[Apart]:
    """Run a receiver in a process of its own inside the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.faults.receiver",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        async for line in process.stdout:
            if line.startswith(b"http://"):
                yield Apart(url=line.decode().strip())
                break
        else:
            msg = "the receiver did not start"
            raise AssertionError(msg)
    finally:
        process.stdin.close()
        await process.wait()


async def serve() -> None:
    """Record until standard input ends, at the highest priority if that is permitted.

    It is the measuring instrument: its own wait for a core would count as a delay of the sender.
    """
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    # A full garbage collection takes 20 to 30 ms, as long as the margin of the rate limit. A
    # request that arrives during it would be recorded that much later.
    gc.collect()
    gc.freeze()
    receiver = Receiver()

    async def requests(_: web.Request) -> web.Response:
        return web.json_response([{**asdict(each), "body": None} for each in receiver.requests])

    app = web.Application()
    app.router.add_post("/hook", receiver.handle)
    app.router.add_get("/requests", requests)
    async with listening(app, "127.0.0.1", 0) as port:
        sys.stdout.write(f"http://127.0.0.1:{port}/hook\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve())
