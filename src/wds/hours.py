"""Every document, filter, update and pipeline of the collection `hours`, as plain data. Pure.

One document an hour in which events were received (`rollups` says when it may be trusted):

    _id         the hour, UTC
    until       what the counts cover: events received from `_id` on and before this
    counts      [{status, event_type, count}], all of final statuses
    token       of the replica that is extending the counts now
    reopened_at when finished events of the hour were last about to live again
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pymongo import UpdateOne

from wds.model import Status
from wds.queries import STATUS_INDEX

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wds.queries import Document

HOURS = "hours"
HOUR = timedelta(hours=1)
LIVE = frozenset({Status.RECEIVED, Status.DELIVERING})
LIVE_INDEX = STATUS_INDEX
MAX_EVENT_TYPES = 1000
"""Most event types that an aggregation lists, the commonest first."""

Span = tuple[datetime, datetime]
"""From the first inclusive to the second exclusive."""


def start_of(instant: datetime) -> datetime:
    """Return the beginning of the hour that `instant` lies in."""
    return instant.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def take(hour: datetime, token: str, hold_ms: int) -> UpdateOne:
    """Announce that the counts of `hour` are being extended, unless it was reopened lately."""
    lately = {"$gt": ["$reopened_at", {"$subtract": ["$$NOW", hold_ms]}]}
    return UpdateOne(
        {"_id": hour},
        [
            {
                "$set": {
                    "token": {"$cond": [lately, "$$REMOVE", {"$literal": token}]},
                    "until": {"$ifNull": ["$until", {"$literal": hour}]},
                    "counts": {"$ifNull": ["$counts", []]},
                }
            }
        ],
        upsert=True,
    )


def extend(hour: datetime, token: str, until: datetime, counts: Sequence[Document]) -> UpdateOne:
    """Set new counts, unless another replica or a reopening has come in between."""
    change = {"$set": {"until": until, "counts": list(counts)}, "$unset": {"token": ""}}
    return UpdateOne({"_id": hour, "token": token}, change)


def reopen(hour: datetime) -> UpdateOne:
    """Forget the counts of `hour`, and keep it from being counted for a while."""
    fresh = {"until": {"$literal": hour}, "counts": [], "reopened_at": "$$NOW"}
    return UpdateOne({"_id": hour}, [{"$set": {**fresh, "token": "$$REMOVE"}}], upsert=True)


def live_in(span: Span) -> Document:
    """Match the live events received in `span`; to be looked up in `LIVE_INDEX`."""
    begin, end = span
    return {"status": {"$in": sorted(LIVE)}, "received_at": {"$gte": begin, "$lt": end}}


def tally(
    spans: Sequence[Span], statuses: Sequence[str] = (), event_types: Sequence[str] = ()
) -> list[Document]:
    """Count the events received in `spans`, of these statuses and types, by hour, status and type.

    To be run with the covering index as its hint.
    """
    match: Document = {
        "$or": [{"received_at": {"$gte": begin, "$lt": end}} for begin, end in spans]
    }
    if statuses:
        match["status"] = {"$in": list(statuses)}
    if event_types:
        match["event_type"] = {"$in": list(event_types)}
    return [
        {"$match": match},
        {"$project": {"_id": 0, "received_at": 1, "status": 1, "event_type": 1}},
        {
            "$group": {
                "_id": {
                    "hour": {"$dateTrunc": {"date": "$received_at", "unit": "hour"}},
                    "status": "$status",
                    "event_type": "$event_type",
                },
                "count": {"$sum": 1},
            }
        },
    ]


def covered(
    span: Span,
    statuses: Sequence[str] = (),
    event_types: Sequence[str] = (),
    *,
    total_only: bool = False,
    bins: tuple[str, int] | None = None,
) -> list[Document]:
    """Read, at once, which hours within `span` are counted how far, and their sums.

    Gives `{until: [{_id, until}], total: [{count}]}` or, with more, instead of the total
    `kinds: [{_id: {status, event_type}, count}]` and `histogram: [{_id, count}]`; with `bins`, a
    unit and how many of it, not less than an hour, `outcomes: [{_id: {at, status}, count}]`.
    """
    begin, end = span
    wanted: list[Document] = []
    if statuses:
        wanted.append({"$in": ["$$this.status", {"$literal": list(statuses)}]})
    if event_types:
        wanted.append({"$in": ["$$this.event_type", {"$literal": list(event_types)}]})
    chosen: object = "$counts"
    if wanted:
        chosen = {"$filter": {"input": "$counts", "cond": {"$and": wanted}}}
    facets: dict[str, list[Document]] = {"until": [{"$project": {"until": 1}}]}
    if bins is not None:
        unit, size = bins
        at = {"$dateTrunc": {"date": "$_id", "unit": unit, "binSize": size}}
        facets["outcomes"] = [
            {"$unwind": "$chosen"},
            {
                "$group": {
                    "_id": {"at": at, "status": "$chosen.status"},
                    "count": {"$sum": "$chosen.count"},
                }
            },
        ]
    elif total_only:
        facets["total"] = [{"$group": {"_id": None, "count": {"$sum": {"$sum": "$chosen.count"}}}}]
    else:
        kind = {"status": "$chosen.status", "event_type": "$chosen.event_type"}
        facets["kinds"] = [
            {"$unwind": "$chosen"},
            {"$group": {"_id": kind, "count": {"$sum": "$chosen.count"}}},
        ]
        facets["histogram"] = [
            {"$project": {"count": {"$sum": "$chosen.count"}}},
            {"$match": {"count": {"$gt": 0}}},
        ]
    return [
        {"$match": {"_id": {"$gte": begin, "$lt": end}, "until": {"$lte": end}}},
        {"$match": {"$expr": {"$gt": ["$until", "$_id"]}}},
        {"$project": {"until": 1, "chosen": chosen}},
        {"$facet": facets},
    ]


def gaps(span: Span, counted: Iterable[Document]) -> list[Span]:
    """Return the parts of `span` that the counted hours leave, in order, none empty."""
    left: list[Span] = []
    at, end = span
    for each in sorted(counted, key=lambda each: each["_id"]):
        if each["_id"] > at:
            left.append((at, each["_id"]))
        at = max(at, each["until"])
    if at < end:
        left.append((at, end))
    return left


def summary(kept: Document, tallied: Sequence[Document]) -> Document:
    """Add kept and tallied counts up: `by_status`, `by_event_type`, `histogram`, in order."""
    by_status: Counter[str] = Counter()
    by_event_type: Counter[str] = Counter()
    histogram: Counter[datetime] = Counter()
    for each in (*kept["kinds"], *tallied):
        by_status[each["_id"]["status"]] += each["count"]
        by_event_type[each["_id"].get("event_type") or ""] += each["count"]
    for each in kept["histogram"]:
        histogram[each["_id"]] += each["count"]
    for each in tallied:
        histogram[each["_id"]["hour"]] += each["count"]
    commonest = sorted(by_event_type.items(), key=lambda each: (-each[1], each[0]))
    return {
        "by_status": _listed(by_status.items()),
        "by_event_type": _listed(commonest[:MAX_EVENT_TYPES]),
        "histogram": _listed(sorted(histogram.items())),
    }


def _listed(pairs: Iterable[tuple[Any, int]]) -> list[Document]:
    return [{"_id": key, "count": count} for key, count in pairs]
