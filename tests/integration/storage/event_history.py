"""Events of many hours, and a model of the searches over them."""

from __future__ import annotations

from datetime import datetime, timedelta

from tests.support import new_event
from wds.domain.deliveries import Status
from wds.domain.event_filter import SORTS, EventFilter
from wds.storage import event_documents
from wds.storage.event_queries import match
from wds.storage.rollup_queries import HOUR, hour_of

STATUSES = [Status.DELIVERED, Status.DELIVERED, Status.FAILED_PERMANENTLY]


TYPES = ["a", "b", None]


async def put(
    db,
    at: datetime,
    status: Status = Status.DELIVERED,
    kind: str | None = "a",
    **more: object,
) -> str:
    """Store an event as if it had been received at `at`."""
    document = event_documents.event_document(new_event(event_type=kind), at)
    document |= {"status": status, "attempt_count": 1, **more}
    if status not in (Status.RECEIVED, Status.DELIVERING):
        del document["next_attempt_at"]
    await db.events.insert_one(document)
    return document["_id"]


async def total(store, **filters) -> int:
    query = match(EventFilter(**filters))
    counts = await store.rollups.counts(query)
    sums = {await store.rollups.total(query)}
    sums |= {sum(each["count"] for each in counts[name]) for name in counts}
    assert len(sums) == 1, counts
    return sums.pop()


async def stored_total(store, db) -> int:
    """Return the total without any events: what the rollups store."""
    events = await db.events.find().to_list(None)
    await db.events.delete_many({})
    try:
        return await total(store)
    finally:
        if events:
            await db.events.insert_many(events)


CHOICES = {
    "status": [("DELIVERED",), ("DELIVERED", "DELIVERING")],
    "event_type": [("a",), ("a", "b")],
    "source": [("one",), ("one", "none")],
    "destination": [("other",)],
    "last_status_code": [(500,), (200, 404)],
    "min_attempts": [1, 3],
}


def draw_filters(rng, now) -> dict:
    """Draw a few filters, so that most of the time some event matches."""
    filters = {name: rng.choice(values) for name, values in CHOICES.items() if rng.random() < 0.3}
    begin = now - timedelta(seconds=rng.randrange(45 * 3600))
    filters["from_"] = rng.choice([None, begin, hour_of(begin)])
    filters["to"] = rng.choice([None, begin + timedelta(seconds=rng.randrange(90_000))])
    return filters


def matches(event, filters) -> bool:
    """Tell in Python whether an event matches."""
    for name, asked in filters.items():
        if name == "min_attempts":
            fit = event["attempt_count"] >= asked
        elif name == "from_":
            fit = asked is None or event["received_at"] >= asked
        elif name == "to":
            fit = asked is None or event["received_at"] < asked
        else:
            fit = event.get(name) in asked
        if not fit:
            return False
    return True


def in_order(events, sort) -> list[str]:
    """Return the ids of events in an order."""
    fields = [field for field, _ in SORTS[sort]]
    ordered = sorted(
        events, key=lambda each: [each[field] for field in fields], reverse=sort[0] == "-"
    )
    return [each["_id"] for each in ordered]


async def store_counts(store, now) -> None:
    """Store all counts up to a horizon inside an hour."""
    horizon = now - 20 * HOUR + timedelta(minutes=17)
    await store.rollups._extend([hour_of(now) - n * HOUR for n in range(40, 19, -1)], horizon)
