"""The upper bound of delivery: POST bodies with aiohttp, without claims and records.

`python -m benchmarks.post_loop URL COUNT CONCURRENCY FOLDER`
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp


async def run(url: str, count: int, concurrency: int, bodies: list[bytes]) -> None:
    """Post `count` bodies, `concurrency` at a time."""
    numbers = iter(range(count))

    async def work(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            body = bodies[number % len(bodies)]
            headers = {"Content-Type": "application/json", "webhook-id": str(number)}
            async with session.post(url, data=body, headers=headers) as response:
                await response.read()

    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work(session))


def main() -> None:
    """Read the bodies and post them."""
    url, count, concurrency, folder = sys.argv[1:]
    bodies = [path.read_bytes() for path in sorted(Path(folder).glob("*.json"))]
    asyncio.run(run(url, int(count), int(concurrency), bodies))


if __name__ == "__main__":
    main()
