"""A receiver in a process of its own, so that nothing else delays the clock it reads.

`python -m tests.faults.receiver` prints the URL to send to, and answers `GET /requests` with
what it has recorded. Its instants are of the machine's monotonic clock, which all processes
share.
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
    """A receiver elsewhere; `fetch` brings what it has recorded."""

    async def fetch(self) -> None:
        """Replace `requests` by what the process has recorded until now."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(self.url.replace("/hook", "/requests")) as response,
        ):
            self.requests = [Request(**each) for each in await response.json()]


@asynccontextmanager
async def receiving_apart() -> AsyncIterator[Apart]:
    """Run a receiver in a process of its own, gone afterwards."""
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
    """Record until standard input ends, before anybody else if that may be asked for.

    It is the instrument: what its own wait for a core adds would be laid at the sender's door.
    """
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    # To look through all that is loaded for garbage takes 20 to 30 ms, and a request that comes
    # meanwhile would be recorded as late as the limit's margin is wide.
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
