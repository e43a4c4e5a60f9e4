"""Rows about search: pages, deep pages, counts and histograms over a long history, by HTTP."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp

from benchmarks.claims import Place
from benchmarks.fill import CODES, HISTORY_DAYS, MOST_ATTEMPTS, TYPES, fill, finished
from benchmarks.ingest import serving
from benchmarks.rows import Measure, Row, Sample, within
from wds.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.stack import Engines

SEARCHES = 200
DEEP = 100
"""Pages followed by cursor before the ones that are timed."""


def filters(rng: random.Random) -> dict[str, Any]:
    """Return filters such as operators choose: some statuses, some types, some range, or none."""
    wanted: dict[str, Any] = {}
    if rng.random() < 0.5:
        wanted["status"] = rng.choice(["DELIVERED", "FAILED_PERMANENTLY", "DELIVERING"])
    if rng.random() < 0.5:
        wanted["event_type"] = f"kind-{rng.randrange(TYPES)}"
    if rng.random() < 0.7:
        wanted |= any_range(rng)
    return wanted


def outcome_filters(rng: random.Random) -> dict[str, Any]:
    """Return filters by how deliveries went, at any time: what many, few or no events fit."""
    wanted: dict[str, Any] = {}
    if rng.random() < 0.7:
        wanted["last_status_code"] = rng.choice([*sorted(set(CODES)), 404])
    if not wanted or rng.random() < 0.3:
        wanted["min_attempts"] = rng.randint(2, MOST_ATTEMPTS + 1)
    return wanted


def any_range(rng: random.Random) -> dict[str, Any]:
    """Return a range of minutes to weeks, anywhere in the history."""
    now = datetime.now(UTC)
    begin = now - timedelta(days=rng.uniform(0, HISTORY_DAYS))
    end = begin + timedelta(minutes=10 ** rng.uniform(1, 4.7))
    return {"from": begin.isoformat(), "to": end.isoformat()}


def range_or_all(rng: random.Random) -> dict[str, Any]:
    """Return a range, or one time in ten none."""
    return any_range(rng) if rng.random() < 0.9 else {}


async def counted_history(engines: Engines, database: str, scale: int) -> None:
    """Fill a database with finished events and count them, as a service does while they come."""
    await fill(engines, database, scale, [b'{"n":1}'], finished)
    store = Store(engines.mongo_url, database)
    await store.open()
    while await store.rollups.advance():
        pass
    await store.close()


def rows(engines: Engines, scale: int, searches: int = SEARCHES) -> list[Row]:
    """Return the rows, over `scale` events; each sample is the p99 of so many searches."""

    async def history(database: str) -> None:
        await counted_history(engines, database, scale)

    place = Place(engines, history)

    async def timed(requests: Iterator[dict[str, Any]], untimed: int = 0) -> Sample:
        took = []
        async with (
            serving(engines, await place.database()) as (_, url),
            aiohttp.ClientSession() as session,
        ):
            for wanted in requests:
                began = time.perf_counter()
                target = url.replace("/ingest", "/search")
                async with session.post(target, json=wanted) as response:
                    answer = await response.json()
                    response.raise_for_status()
                took.append((time.perf_counter() - began) * 1000)
                wanted["answer"] = answer
        took = sorted(took[untimed:])
        return Sample(took[int(len(took) * 0.99)], {"p50_ms": took[len(took) // 2]})

    def drawn(
        draw: Callable[[random.Random], dict[str, Any]], seed: int, **more: object
    ) -> Measure:
        async def measure() -> Sample:
            rng = random.Random(seed)
            return await timed({**draw(rng), **more} for _ in range(searches))

        return measure

    async def deep() -> Sample:
        def follow() -> Iterator[dict[str, Any]]:
            cursor = None
            for number in range(DEEP + searches):
                wanted: dict[str, Any] = {"limit": 500 if number < DEEP else 50}
                wanted |= {"aggregations": False, "cursor": cursor}
                if cursor is None:
                    del wanted["cursor"]
                yield wanted
                cursor = wanted["answer"]["next_cursor"]

        return await timed(follow(), DEEP)

    return [
        Row(
            "search page with filters, p99",
            "ms",
            {
                "wds": drawn(filters, 1, aggregations=False),
                "by code or attempts": drawn(outcome_filters, 3, aggregations=False),
                "deep by cursor": deep,
            },
            (
                within(50, "value", "ms"),
                within(50, "value", "ms", side="by code or attempts"),
                within(50, "value", "ms", side="deep by cursor"),
            ),
        ),
        Row(
            "counts and histogram, p99",
            "ms",
            {
                "wds": drawn(range_or_all, 2, limit=1),
                "by code or attempts": drawn(outcome_filters, 4, limit=1),
            },
            (
                within(500, "value", "ms"),
                within(500, "value", "ms", side="by code or attempts"),
            ),
        ),
    ]
