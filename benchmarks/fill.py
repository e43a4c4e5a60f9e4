"""Filling databases: with backlogs, with events that are due later, with histories."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from wds.domain.deliveries import Attempt, Outcome, Settlement, Status
from wds.domain.events import NewEvent, random_id
from wds.storage import event_documents
from wds.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.stack import Engines
    from wds.domain.deliveries import Claim

BATCH = 2000
BATCH_BYTES = 24_000_000
TYPES = 20
HISTORY_DAYS = 30
CODES = [500] * 900 + [503] * 99 + [418]
"""The last status codes of failed events: one frequent, one rare, one very rare."""
MOST_ATTEMPTS = 5
SOURCES = {"github": 0.7, "stripe": 0.25, "shop": 0.0499, "partner": 0.0001}
"""The share of each source in a history, from most of it to almost nothing."""
DESTINATIONS = {"default": 0.999, "archive": 0.001}


def events(count: int, bodies: Sequence[bytes], now: datetime) -> Iterator[dict[str, Any]]:
    """Yield stored new events, one received each millisecond up to `now`, oldest first."""
    for number in range(count):
        at = now - timedelta(milliseconds=count - number)
        event = NewEvent(
            id=random_id(at, number.to_bytes(10)),
            source="default",
            payload=bodies[number % len(bodies)],
            content_type="application/json",
            event_type=f"kind-{number % TYPES}",
        )
        yield event_documents.event_document(event, at)


async def fill(
    engines: Engines,
    database: str,
    count: int,
    bodies: Sequence[bytes],
    shape: Callable[[dict[str, Any], int], None] | None = None,
) -> None:
    """Insert `count` events, each changed by `shape` if given, into a database with all indexes."""
    store = Store(engines.mongo_url, database)
    await store.open()
    now = await store.now()
    await store.close()
    collection = engines.client[database].events

    def insert() -> None:
        batch = []
        for number, document in enumerate(events(count, bodies, now)):
            if shape is not None:
                shape(document, number)
            batch.append(document)
            if len(batch) == BATCH or len(batch) * len(document["payload"]) > BATCH_BYTES:
                collection.insert_many(batch, ordered=False)
                batch = []
        if batch:
            collection.insert_many(batch, ordered=False)

    await asyncio.to_thread(insert)


def in_the_future(document: dict[str, Any], number: int) -> None:
    """Turn an event into one that waits for a retry, due in an hour or later."""
    document["status"] = Status.DELIVERING
    document["next_attempt_at"] += timedelta(hours=1, milliseconds=number)


def finished(document: dict[str, Any], number: int) -> None:
    """Turn an event into one of the last `HISTORY_DAYS` days that was delivered or failed."""
    rng = random.Random(number)
    at = document["received_at"] - timedelta(seconds=rng.uniform(0, HISTORY_DAYS * 86400))
    at = at.replace(microsecond=at.microsecond // 1000 * 1000)
    del document["next_attempt_at"]
    document["_id"] = random_id(at, number.to_bytes(10))
    document["received_at"] = document["finished_at"] = at
    document["status"] = Status.DELIVERED if number % 10 else Status.FAILED_PERMANENTLY
    code = 200 if number % 10 else CODES[number // 10 % len(CODES)]
    attempts = 1 if number % 10 else 1 + number // 10 % MOST_ATTEMPTS
    document["attempt_count"] = attempts
    for name, shares in (("source", SOURCES), ("destination", DESTINATIONS)):
        [document[name]] = rng.choices(list(shares), list(shares.values()))
    document["last_status_code"] = code
    document["attempts"] = [
        event_documents.attempt_document(
            Attempt(each, at, Outcome.SUCCESS, 200, 12, None, "ok")
            if number % 10
            else Attempt(each, at, Outcome.FAILURE, code, 12, f"HTTP {code}", "no")
        )
        for each in range(1, attempts + 1)
    ]


def delivered(claim: Claim) -> Settlement:
    """Return the settlement of a claim that was delivered."""
    attempt = Attempt(
        attempt_number=claim.attempt_number,
        timestamp=datetime.now(UTC),
        outcome=Outcome.SUCCESS,
        status_code=200,
        duration_ms=5,
        error=None,
        response="ok",
    )
    return Settlement(claim, attempt, Status.DELIVERED)
