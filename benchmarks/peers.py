"""Other implementations of the same service, started by the commands in a file.

The file is TOML, with one table for each peer:

    [celery]
    cwd = "/where/its/code/is"
    ingest = ["uvicorn", "receiver:app", "--port", "{port}"]
    workers."-c 8" = ["celery", "-A", "tasks", "worker", "-c", "8"]

Each command gets WDS_HMAC_SECRET, MONGO_URL, MONGO_DB, REDIS_URL and DOWNSTREAM_URL in its
environment, accepts signed events at /webhooks/ingest and stores them in a collection `events`.
"""

from __future__ import annotations

import tomllib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from benchmarks import stack
from wds.local import embedded_engines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.stack import Engines, Running


@dataclass(frozen=True)
class Peer:
    """One peer, as the file describes it."""

    name: str
    cwd: Path
    ingest: list[str]
    workers: dict[str, list[str]] = field(default_factory=dict)

    @asynccontextmanager
    async def serving(self, engines: Engines, database: str) -> AsyncIterator[tuple[Running, str]]:
        """Run its ingest on a free port."""
        port = embedded_engines.free_port()
        arguments = [part.format(port=port) for part in self.ingest]
        env = engines.environ(database)
        async with stack.command(arguments, env, self.cwd, port=port, log=engines.home) as running:
            yield running, f"http://127.0.0.1:{port}/webhooks/ingest"

    @asynccontextmanager
    async def working(
        self, engines: Engines, database: str, worker: str, downstream: str
    ) -> AsyncIterator[Running]:
        """Run one of its workers."""
        env = engines.environ(database, DOWNSTREAM_URL=downstream)
        async with stack.command(self.workers[worker], env, self.cwd, log=engines.home) as running:
            yield running

    def forget(self, engines: Engines) -> None:
        """Delete all of its data in Redis."""
        with redis.Redis.from_url(engines.redis_url) as client:
            client.flushall()


def read(path: Path) -> list[Peer]:
    """Return the peers in a file."""
    tables = tomllib.loads(path.read_text())
    return [Peer(name, Path(each.pop("cwd")), **each) for name, each in tables.items()]
