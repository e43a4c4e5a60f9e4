"""Rows about search over a long history, by HTTP: pages, counts and the console's pages."""

from __future__ import annotations

import random
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import aiohttp

from benchmarks.claims import PreparedDatabase
from benchmarks.fill import (
    CODES,
    DESTINATIONS,
    HISTORY_DAYS,
    MOST_ATTEMPTS,
    SOURCES,
    TYPES,
    fill,
    finished,
)
from benchmarks.ingest import serving
from benchmarks.rows import Measure, Row, Sample, within
from wds.domain.deliveries import Status
from wds.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from benchmarks.stack import Engines

SEARCHES = 200
DEEP = 100
"""Pages that are read by cursor before the measured ones."""


def filters(rng: random.Random) -> dict[str, Any]:
    """Return random filters: some statuses, some types, a range, or none of these."""
    wanted: dict[str, Any] = {}
    if rng.random() < 0.5:
        wanted["status"] = rng.choice(["DELIVERED", "FAILED_PERMANENTLY", "DELIVERING"])
    if rng.random() < 0.5:
        wanted["event_type"] = f"kind-{rng.randrange(TYPES)}"
    if rng.random() < 0.7:
        wanted |= any_range(rng)
    return wanted


def outcome_filters(rng: random.Random) -> dict[str, Any]:
    """Return random filters by result, in any range: many, few or no events match."""
    wanted: dict[str, Any] = {}
    if rng.random() < 0.7:
        wanted["last_status_code"] = rng.choice([*sorted(set(CODES)), 404])
    if not wanted or rng.random() < 0.3:
        wanted["min_attempts"] = rng.randint(2, MOST_ATTEMPTS + 1)
    return wanted


def any_filters(rng: random.Random) -> dict[str, Any]:
    """Return up to four random filters, in any range: many, few or no events match."""
    choices: dict[str, Callable[[], object]] = {
        "source": lambda: rng.choice([*SOURCES, "unknown"]),
        "destination": lambda: rng.choice([*DESTINATIONS, "unknown"]),
        "status": lambda: str(rng.choice(list(Status))),
        "event_type": lambda: f"kind-{rng.randrange(TYPES + 1)}",
        "last_status_code": lambda: rng.choice([200, *sorted(set(CODES)), 404]),
        "min_attempts": lambda: rng.randint(1, MOST_ATTEMPTS + 1),
    }
    return {name: choices[name]() for name in rng.sample(sorted(choices), rng.randint(1, 4))}


def by_attempts(rng: random.Random) -> dict[str, Any]:
    """Return the same filters, sorted by attempts; one time in five, no filter."""
    wanted = any_filters(rng) if rng.random() < 0.8 else {}
    return {**wanted, "sort": rng.choice(["attempt_count", "-attempt_count"])}


def any_range(rng: random.Random) -> dict[str, Any]:
    """Return a random range of minutes to weeks, anywhere in the history."""
    now = datetime.now(UTC)
    begin = now - timedelta(days=rng.uniform(0, HISTORY_DAYS))
    end = begin + timedelta(minutes=10 ** rng.uniform(1, 4.7))
    return {"from": begin.isoformat(), "to": end.isoformat()}


def range_or_all(rng: random.Random) -> dict[str, Any]:
    """Return a random range; one time in ten, none."""
    return any_range(rng) if rng.random() < 0.9 else {}


async def counted_history(engines: Engines, database: str, scale: int) -> None:
    """Fill a database with finished events, and count them in the rollups as a service does."""
    await fill(engines, database, scale, [b'{"n":1}'], finished)
    store = Store(engines.mongo_url, database)
    await store.open()
    while await store.rollups.advance():
        pass
    await store.close()


def percentiles(took_ms: list[float]) -> Sample:
    """Return the 99th percentile of the requests' milliseconds, and the median with it."""
    took_ms = sorted(took_ms)
    return Sample(took_ms[int(len(took_ms) * 0.99)], {"p50_ms": took_ms[len(took_ms) // 2]})


class History:
    """Measurements over a long history; each sample is one p99."""

    def __init__(self, engines: Engines, scale: int, searches: int) -> None:
        """`scale` is the number of events, `searches` the number of requests in a sample."""
        self._engines = engines
        self._searches = searches
        self._prepared = PreparedDatabase(
            engines, lambda name: counted_history(engines, name, scale)
        )

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
        async with (
            serving(self._engines, await self._prepared.database()) as (_, url),
            aiohttp.ClientSession() as session,
        ):
            yield session, url.removesuffix("/webhooks/ingest")

    async def _timed(self, requests: Iterator[dict[str, Any]], untimed: int = 0) -> Sample:
        took = []
        async with self._client() as (session, url):
            for wanted in requests:
                began = time.perf_counter()
                async with session.post(f"{url}/webhooks/search", json=wanted) as response:
                    answer = await response.json()
                    response.raise_for_status()
                took.append((time.perf_counter() - began) * 1000)
                wanted["answer"] = answer
        return percentiles(took[untimed:])

    def drawn(
        self, draw: Callable[[random.Random], dict[str, Any]], seed: int, **more: object
    ) -> Measure:
        """Measure searches with random filters."""

        async def measure() -> Sample:
            rng = random.Random(seed)
            return await self._timed({**draw(rng), **more} for _ in range(self._searches))

        return measure

    async def deep(self) -> Sample:
        """Measure pages by cursor, deep in the results."""

        def follow() -> Iterator[dict[str, Any]]:
            cursor = None
            for number in range(DEEP + self._searches):
                wanted: dict[str, Any] = {"limit": 500 if number < DEEP else 50}
                wanted |= {"aggregations": False, "cursor": cursor}
                if cursor is None:
                    del wanted["cursor"]
                yield wanted
                cursor = wanted["answer"]["next_cursor"]

        return await self._timed(follow(), DEEP)

    def console(self, address: Callable[[random.Random, Sequence[str]], str]) -> Measure:
        """Measure pages of the console; `address` returns one, from the ids of some events."""

        async def measure() -> Sample:
            rng = random.Random(5)
            took = []
            async with self._client() as (session, url):
                async with session.post(f"{url}/webhooks/search", json={"limit": 500}) as response:
                    ids = [each["id"] for each in (await response.json())["events"]]
                for _ in range(self._searches):
                    began = time.perf_counter()
                    async with session.get(f"{url}/console{address(rng, ids)}") as response:
                        await response.read()
                        response.raise_for_status()
                    took.append((time.perf_counter() - began) * 1000)
            return percentiles(took)

        return measure


def filtered_view(rng: random.Random, _: Sequence[str]) -> str:
    """Return the address of the console's list with random filters and a range."""
    return f"?{urlencode({**any_filters(rng), 'range': rng.choice(['7d', '30d', 'all'])})}"


def rows(engines: Engines, scale: int, searches: int = SEARCHES) -> list[Row]:
    """Return the rows over `scale` events; each sample is the p99 of its requests."""
    history = History(engines, scale, searches)
    return [
        Row(
            "search page with filters, p99",
            "ms",
            {
                "wds": history.drawn(filters, 1, aggregations=False),
                "by code or attempts": history.drawn(outcome_filters, 3, aggregations=False),
                "by any filters": history.drawn(any_filters, 6, aggregations=False),
                "by any, in order of attempts": history.drawn(by_attempts, 7, aggregations=False),
                "deep by cursor": history.deep,
            },
            (
                within(50, "value", "ms"),
                within(50, "value", "ms", side="by any filters"),
                within(50, "value", "ms", side="by any, in order of attempts"),
                within(50, "value", "ms", side="by code or attempts"),
                within(50, "value", "ms", side="deep by cursor"),
            ),
        ),
        Row(
            "counts and histogram, p99",
            "ms",
            {
                "wds": history.drawn(range_or_all, 2, limit=1),
                "by code or attempts": history.drawn(outcome_filters, 4, limit=1),
                "by any filters": history.drawn(any_filters, 8, limit=1),
            },
            (
                within(500, "value", "ms"),
                within(500, "value", "ms", side="by code or attempts"),
                within(500, "value", "ms", side="by any filters"),
            ),
        ),
        Row(
            "console page, p99",
            "ms",
            {
                "first view": history.console(lambda _, __: ""),
                "by any filters": history.console(filtered_view),
                "one event": history.console(lambda rng, ids: f"/events/{rng.choice(ids)}"),
            },
        ),
    ]
