"""Rows about the queue in the database: the cost of a claim, beside backlogs and histories."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.delivery import CONCURRENCY, claim_and_settle
from benchmarks.fill import delivered, fill, finished, in_the_future
from benchmarks.payloads import SMALL, of_size
from benchmarks.rows import Measure, Row, Sample, at_most
from wds.storage.store import Store

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from benchmarks.stack import Engines

DUE = 4096
"""Events claimed in one sample."""


class PreparedDatabase:
    """A database in some state, prepared for the first measurement and kept for the next ones."""

    def __init__(self, engines: Engines, prepare: Callable[[str], Awaitable[None]]) -> None:
        """`prepare` fills the database with the name that it gets."""
        self._engines = engines
        self._prepare = prepare
        self._database: str | None = None

    async def database(self) -> str:
        """Return its name; prepare it at the first call.

        Its data are on disk then, as the data of weeks would be.
        """
        if self._database is None:
            self._database = self._engines.database(keep=True)
            await self._prepare(self._database)
            self._engines.client.admin.command("fsync")
        return self._database


async def time_claims(engines: Engines, database: str) -> Sample:
    """Return microseconds for each of `DUE` events claimed in batches, and for a lone claim."""
    store = Store(engines.mongo_url, database)
    await store.open()
    claims = []
    began = time.perf_counter()
    while len(claims) < DUE:
        claimed = await store.queue.claim(
            "default", CONCURRENCY, owner="bench", lease_s=600, max_attempts=5
        )
        claims += claimed.claims
    batched = time.perf_counter() - began
    began = time.perf_counter()
    empty = 50
    for _ in range(empty):
        await store.queue.claim("default", 1, owner="bench", lease_s=600, max_attempts=5)
    nothing_due = (time.perf_counter() - began) / empty
    await store.queue.settle([delivered(claim) for claim in claims])
    await store.close()
    return Sample(batched / DUE * 1e6, {"nothing_due_us": nothing_due * 1e6})


def rows(engines: Engines, rng: random.Random, scale: int) -> list[Row]:
    """Return the rows, with `scale` events that are due later and five times as many finished."""
    bodies = [of_size(SMALL, rng) for _ in range(60)]
    tiny = [b'{"n":1}']
    settled = scale // 5

    def fresh() -> Measure:
        async def measure() -> Sample:
            database = engines.database()
            await fill(engines, database, DUE, bodies)
            sample = await time_claims(engines, database)
            engines.drop()
            return sample

        return measure

    def beside(prepared: PreparedDatabase) -> Measure:
        async def measure() -> Sample:
            database = await prepared.database()
            await fill(engines, database, DUE, bodies)
            return await time_claims(engines, database)

        return measure

    async def future(database: str) -> None:
        await fill(engines, database, scale, bodies, in_the_future)

    async def history(database: str) -> None:
        await fill(engines, database, 5 * scale, tiny, finished)

    async def after_many() -> Sample:
        database = engines.database()
        await fill(engines, database, settled + DUE, bodies)
        store = Store(engines.mongo_url, database)
        await store.open()
        done = 0
        while done < settled:
            done += await claim_and_settle(store, min(CONCURRENCY, settled - done))
        await store.close()
        sample = await time_claims(engines, database)
        engines.drop()
        return sample

    waiting, past = f"{scale:,} waiting", f"{5 * scale:,} finished"
    gone = f"after {settled:,} settled"
    return [
        Row(
            "claim, for each event of a batch",
            "µs",
            {
                "empty": fresh(),
                waiting: beside(PreparedDatabase(engines, future)),
                past: beside(PreparedDatabase(engines, history)),
                gone: after_many,
            },
            (
                at_most(1.25, waiting, "empty"),
                at_most(1.25, past, "empty"),
                at_most(1.5, gone, "empty"),
            ),
        )
    ]
