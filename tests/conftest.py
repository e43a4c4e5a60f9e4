"""Real engines for the tests: one mongod and one redis-server per session, a database per test."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from motor.motor_asyncio import AsyncIOMotorClient

from tests.support import Engines, make_settings
from wds.delivery.rate_limiter import RateLimiter
from wds.local import embedded_engines
from wds.local.replica_set import initiate_replica_set
from wds.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from motor.motor_asyncio import AsyncIOMotorDatabase

    from wds.config import Settings


@contextmanager
def sharing_the_machine(tmp_path_factory: pytest.TempPathFactory, *, alone: bool) -> Iterator[None]:
    """Run the block beside those of other processes; with `alone`, when no other is running.

    A process that waits to be alone holds the door's lock, so that no other starts meanwhile.
    """
    # Each of several processes has a folder of its own within the run's.
    apart = "PYTEST_XDIST_WORKER" in os.environ
    run = tmp_path_factory.getbasetemp().parent if apart else tmp_path_factory.getbasetemp()
    with (run / "door").open("w") as door, (run / "room").open("w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if not alone:
            fcntl.flock(door, fcntl.LOCK_UN)
        try:
            yield
        finally:  # explicitly: processes started in the block may hold the files open
            fcntl.flock(room, fcntl.LOCK_UN)
            fcntl.flock(door, fcntl.LOCK_UN)


@pytest.fixture(scope="session", autouse=True)
def plain_lines() -> None:
    """Log without colours, and without local variables in tracebacks, which would take seconds."""
    renderer = structlog.dev.ConsoleRenderer(
        colors=False, exception_formatter=structlog.dev.plain_traceback
    )
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], renderer])


@pytest.fixture(autouse=True)
def machine(request, tmp_path_factory) -> Iterator[None]:
    """Share the machine with the tests of other processes, unless the test is marked `alone`."""
    alone = request.node.get_closest_marker("alone") is not None
    with sharing_the_machine(tmp_path_factory, alone=alone):
        yield


@pytest.fixture(scope="session")
def engines(tmp_path_factory) -> Iterator[Engines]:
    """Start mongod (one-node replica set) and redis-server; stop them after the last test."""
    home = Path(tempfile.mkdtemp(prefix="wds-tests-"))
    stack = AsyncExitStack()

    async def start() -> Engines:
        parameters = ("enableTestCommands=1", "ttlMonitorSleepSecs=1")
        mongod = await embedded_engines.start_mongod(
            home / "mongo",
            extra=tuple(word for each in parameters for word in ("--setParameter", each)),
        )
        stack.push_async_callback(mongod.stop)
        await initiate_replica_set("127.0.0.1", mongod.port, embedded_engines.REPLICA_SET)
        redis = await embedded_engines.start_redis(home / "redis")
        stack.push_async_callback(redis.stop)
        return Engines(
            f"mongodb://127.0.0.1:{mongod.port}/?replicaSet={embedded_engines.REPLICA_SET}",
            f"redis://127.0.0.1:{redis.port}/0",
        )

    with asyncio.Runner() as runner:
        try:
            with sharing_the_machine(tmp_path_factory, alone=False):
                started = runner.run(start())
            yield started
        finally:
            runner.run(stack.aclose())
            shutil.rmtree(home)


@pytest.fixture
def settings(engines: Engines) -> Settings:
    """Return settings on the real engines with a database of this test's own."""
    return make_settings(engines)


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    """Open a store on this test's database, which is dropped afterwards."""
    store = Store(settings.mongo_url or "", settings.mongo_db)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def db(settings: Settings) -> AsyncIterator[AsyncIOMotorDatabase[dict[str, object]]]:
    """Give direct access to this test's database, which is dropped afterwards."""
    client: AsyncIOMotorClient[dict[str, object]] = AsyncIOMotorClient(
        settings.mongo_url, tz_aware=True, w="majority"
    )
    yield client[settings.mongo_db]
    await client.drop_database(settings.mongo_db)
    client.close()


@pytest.fixture
async def limiter(settings: Settings) -> AsyncIterator[RateLimiter]:
    """Give a limiter of 3 a second, which only this test's database shares."""
    limiter = RateLimiter(settings.redis_url or "", 3, database=settings.mongo_db, farthest_s=1.5)
    yield limiter
    await limiter.close()
