"""Rows about the cost of each index: mongod's CPU for the same events without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.delivery import claim_and_settle
from benchmarks.fill import TYPES
from benchmarks.payloads import SMALL, of_size
from benchmarks.rows import Measure, Row, Sample
from wds.domain.events import NewEvent, derived_id
from wds.storage import indexes
from wds.storage.store import Store

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from benchmarks.stack import Engines

AT_ONCE = 64
"""Events in one insert, one claim and one settlement."""
DROPPED = (
    indexes.COVERING_INDEX,
    indexes.STATUS_INDEX,
    indexes.TYPE_INDEX,
    indexes.SOURCE_INDEX,
    indexes.CODE_INDEX,
    indexes.ATTEMPTS_INDEX,
    indexes.KEY_INDEX,
)
"""All but `_id` and the claim index, which the queue needs."""


def events(count: int, bodies: Sequence[bytes]) -> list[NewEvent]:
    """Return new events, each with an idempotency key, so that it is in every index."""
    return [
        NewEvent(
            id=derived_id("default", f"key-{number}"),
            source="default",
            payload=bodies[number % len(bodies)],
            content_type="application/json",
            event_type=f"kind-{number % TYPES}",
            idempotency_key=f"key-{number}",
        )
        for number in range(count)
    ]


def without(engines: Engines, bodies: Sequence[bytes], count: int, dropped: str | None) -> Measure:
    """Measure inserts, and claims with settlements, of `count` events."""

    async def measure() -> Sample:
        database = engines.database()
        store = Store(engines.mongo_url, database)
        await store.open()
        if dropped is not None:
            engines.client[database].events.drop_index(dropped)
        new = events(count, bodies)
        before = engines.mongod.cpu_s()
        for start in range(0, count, AT_ONCE):
            await store.writer.insert(new[start : start + AT_ONCE])
        inserted = engines.mongod.cpu_s()
        done = 0
        while done < count:
            done += await claim_and_settle(store, AT_ONCE)
        settled = engines.mongod.cpu_s()
        await store.close()
        engines.drop()
        return Sample(
            (settled - before) / count * 1e6,
            {
                "insert_us": (inserted - before) / count * 1e6,
                "claim_and_settle_us": (settled - inserted) / count * 1e6,
            },
        )

    return measure


def rows(engines: Engines, rng: random.Random, count: int) -> list[Row]:
    """Return the row, `count` small events a sample."""
    bodies = [of_size(SMALL, rng) for _ in range(8)]
    sides = {"all indexes": without(engines, bodies, count, None)}
    sides |= {f"without {name}": without(engines, bodies, count, name) for name in DROPPED}
    return [Row("mongod's CPU, by index", "µs/event", sides)]
