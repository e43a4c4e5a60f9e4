"""The slots that Redis granted, read from its MONITOR: the rate limit by Redis's own clock."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from redis.asyncio import Redis

from wds.delivery.rate_limiter import KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio.client import Monitor


class Grants:
    """Every slot of one destination that was granted and not returned."""

    def __init__(self, client: Redis, key: str) -> None:
        self._client = client
        self._key = key
        self._instants: dict[str, float] = {}
        self._marks: dict[str, asyncio.Event] = {}

    async def instants(self) -> list[float]:
        """Return the instants of all slots granted so far, in seconds."""
        mark = secrets.token_hex(8)
        seen = self._marks[mark] = asyncio.Event()
        await self._client.echo(mark)
        await asyncio.wait_for(seen.wait(), 10)
        return list(self._instants.values())

    async def read(self, monitor: Monitor) -> None:
        """Read the commands of the limiter's script until cancelled."""
        async for seen in monitor.listen():
            match seen["command"].split():
                case ["ZADD", key, instant, name] if key == self._key:
                    self._instants[name] = int(instant) / 1e6
                case ["ZREM", key, name] if key == self._key:
                    self._instants.pop(name, None)
                case ["ECHO", mark] if mark in self._marks:
                    self._marks.pop(mark).set()


@asynccontextmanager
async def recording_grants(
    url: str, database: str, destination: str = "default"
) -> AsyncIterator[Grants]:
    """Record what is granted inside the block."""
    async with Redis.from_url(url, decode_responses=True) as client, client.monitor() as monitor:
        grants = Grants(client, KEY.format(database=database, destination=destination))
        reading = asyncio.create_task(grants.read(monitor))
        try:
            yield grants
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
