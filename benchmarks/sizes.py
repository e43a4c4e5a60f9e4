"""Rows about the size of payloads: does a claim or a settlement write the payload again?

The sides "apart" keep payloads in a collection of their own. wds does not, because events are small
and a claim reads the payload as well. The cost of that design for ingest, a second document and a
transaction over both, is not measured here.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from benchmarks.fill import delivered, fill
from benchmarks.payloads import of_size
from benchmarks.rows import Measure, Row, Sample
from wds.storage.store import Store

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from benchmarks.stack import Engines

AT_ONCE = 64
SIZES = {"600 bytes": 600, "12 KB": 12_000, "64 KB": 64_000, "1 MB": 1_000_000}


def journal_bytes(engines: Engines) -> int:
    """Return the number of bytes that MongoDB has written into its journal so far."""
    status: dict[str, Any] = engines.client.admin.command("serverStatus")
    written: int = status["wiredTiger"]["log"]["log bytes written"]
    return written


def claim_and_settle(
    engines: Engines, bodies: Sequence[bytes], count: int, *, apart: bool
) -> Measure:
    """Measure claims and settlements of `count` events; both designs read the payload."""

    async def measure() -> Sample:
        database = engines.database()
        await fill(engines, database, count, [b"{}"] if apart else bodies)
        payloads = engines.client[database].payloads
        if apart:
            ids = [each["_id"] for each in engines.client[database].events.find({}, {"_id": 1})]
            for start in range(0, count, AT_ONCE):
                payloads.insert_many(
                    {"_id": event_id, "payload": bodies[number % len(bodies)]}
                    for number, event_id in enumerate(ids[start : start + AT_ONCE])
                )
        store = Store(engines.mongo_url, database)
        await store.open()
        journal, cpu = journal_bytes(engines), engines.mongod.cpu_s()
        began = time.perf_counter()
        done = 0
        while done < count:
            claimed = await store.queue.claim(
                "default", AT_ONCE, owner="bench", lease_s=60, max_attempts=5
            )
            if apart:
                query = {"_id": {"$in": [claim.id for claim in claimed.claims]}}
                await asyncio.to_thread(list, payloads.find(query))
            await store.queue.settle([delivered(claim) for claim in claimed.claims])
            done += len(claimed.claims)
        took = time.perf_counter() - began
        cpu = engines.mongod.cpu_s() - cpu
        journal = journal_bytes(engines) - journal
        await store.close()
        engines.drop()
        return Sample(
            took / count * 1e6,
            {
                "mongod_us": cpu / count * 1e6,
                "journal_bytes": journal / count,
            },
        )

    return measure


def rows(engines: Engines, rng: random.Random, count: int) -> list[Row]:
    """Return the row: `count` events of the smaller sizes, fewer of the larger ones."""
    sides = {}
    for name, size in SIZES.items():
        bodies = [of_size(size, rng) for _ in range(8)]
        some = max(min(count, 200_000_000 // size), AT_ONCE)
        sides[name] = claim_and_settle(engines, bodies, some, apart=False)
        sides[f"{name}, apart"] = claim_and_settle(engines, bodies, some, apart=True)
    return [Row("claim and settle, by size of payload", "µs/event", sides)]
