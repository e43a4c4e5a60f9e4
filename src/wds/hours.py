"""Every document, filter, update and pipeline of the collection `hours`, as plain data. Pure.

One document an hour in which events were received (`rollups` says when it may be trusted):

    _id         the hour, UTC
    until       what the counts cover: events received from `_id` on and before this
    counts      [{status, event_type, count}], all of final statuses
    token       of the replica that is extending the counts now
    reopened_at when finished events of the hour were last about to live again
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pymongo import UpdateOne

from wds.model import Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wds.queries import Document

HOURS = "hours"
HOUR = timedelta(hours=1)
LIVE = frozenset({Status.RECEIVED, Status.DELIVERING})
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


def covered(span: Span, statuses: Sequence[str], event_types: Sequence[str]) -> list[Document]:
    """Read, at once, what hours within `span` are counted how far, and their sums.

    Gives `{until: [{_id, until}], sums: [{_id: {hour, status, event_type}, count}]}`.
    """
    begin, end = span
    wanted: Document = {}
    if statuses:
        wanted["counts.status"] = {"$in": list(statuses)}
    if event_types:
        wanted["counts.event_type"] = {"$in": list(event_types)}
    return [
        {"$match": {"_id": {"$gte": begin, "$lt": end}, "until": {"$lte": end}}},
        {"$match": {"$expr": {"$gt": ["$until", "$_id"]}}},
        {
            "$facet": {
                "until": [{"$project": {"until": 1}}],
                "sums": [
                    {"$unwind": "$counts"},
                    {"$match": wanted},
                    {
                        "$project": {
                            "_id": {
                                "hour": "$_id",
                                "status": "$counts.status",
                                "event_type": "$counts.event_type",
                            },
                            "count": "$counts.count",
                        }
                    },
                ],
            }
        },
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


def summary(sums: Iterable[Document]) -> Document:
    """Add sums up: `by_status`, `by_event_type`, `histogram`, each a list of `{_id, count}`."""
    totals: dict[str, dict[Any, int]] = {"status": {}, "event_type": {}, "hour": {}}
    for each in sums:
        for name, total in totals.items():
            key = each["_id"].get(name)
            total[key] = total.get(key, 0) + each["count"]
    types = {key or "": count for key, count in totals["event_type"].items()}
    commonest = sorted(types.items(), key=lambda each: (-each[1], each[0]))[:MAX_EVENT_TYPES]
    return {
        "by_status": _listed(totals["status"].items()),
        "by_event_type": _listed(commonest),
        "histogram": _listed(sorted(totals["hour"].items())),
    }


def _listed(pairs: Iterable[tuple[Any, int]]) -> list[Document]:
    return [{"_id": key, "count": count} for key, count in pairs]
