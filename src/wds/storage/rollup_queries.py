"""Documents, queries, updates and pipelines of the rollups, as plain data. Pure.

There is one document for each hour in which events were received. `rollups` says when it may be
trusted. Its fields:

    _id         the hour, UTC
    until       end of the counted time: events received from `_id` on and before this are counted
    counts      [{status, event_type, count}], all of final statuses
    kinds       the same events by all fields of `KIND`: [{…, count, first, last}], with when the
                first and the last of each kind were received; absent if there are too many kinds
    token       of the replica that is extending the counts now
    reopened_at when finished events of the hour were last about to be replayed

Queries come from `event_queries.match`, with no other fields than those of `KIND` and
`received_at`.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pymongo import UpdateOne

from wds.domain.deliveries import LIVE_STATUSES
from wds.storage.indexes import STATUS_INDEX

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wds.storage.mongo import Document

ROLLUPS = "hour_kinds"
PAIR = ("status", "event_type")
KIND = (*PAIR, "source", "destination", "last_status_code", "attempt_count")
"""Fields of an event by which it is counted."""
HOUR = timedelta(hours=1)
LIVE_INDEX = STATUS_INDEX
TICK = timedelta(milliseconds=1)
"""Smallest difference between two instants in the database."""
MAX_EVENT_TYPES = 1000
"""Most event types that an aggregation lists, the commonest first."""

Span = tuple[datetime, datetime]
"""From the first instant, inclusive, to the second, exclusive."""


def hour_of(instant: datetime) -> datetime:
    """Return the start of the hour in which `instant` lies."""
    return instant.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


# -- writing ---------------------------------------------------------------------------------


def begin_counting(hour: datetime, token: str, hold_ms: int) -> UpdateOne:
    """Announce that the counts of `hour` are being extended, unless it was reopened recently."""
    begin = {"$literal": hour}
    nothing_counted = {"$lte": [{"$ifNull": ["$until", begin]}, begin]}
    return UpdateOne(
        {"_id": hour},
        [
            {
                "$set": {
                    "token": {
                        "$cond": [_reopened_recently(hold_ms), "$$REMOVE", {"$literal": token}]
                    },
                    "until": {"$ifNull": ["$until", begin]},
                    "counts": {"$ifNull": ["$counts", []]},
                    "kinds": {"$cond": [nothing_counted, [], "$kinds"]},
                }
            }
        ],
        upsert=True,
    )


def _reopened_recently(hold_ms: int) -> Document:
    return {"$gt": ["$reopened_at", {"$subtract": ["$$NOW", hold_ms]}]}


def extend(
    hour: datetime,
    token: str,
    until: datetime,
    counts: Sequence[Document],
    kinds: Sequence[Document] | None,
) -> UpdateOne:
    """Set new counts, unless the hour was reopened or another replica began counting meanwhile."""
    values: Document = {"until": until, "counts": list(counts)}
    removed = {"token": ""}
    if kinds is None:
        removed["kinds"] = ""
    else:
        values["kinds"] = list(kinds)
    return UpdateOne({"_id": hour, "token": token}, {"$set": values, "$unset": removed})


def reopen(hour: datetime) -> UpdateOne:
    """Remove the counts of `hour`. `begin_counting` leaves it out for a while."""
    empty = {"until": {"$literal": hour}, "counts": [], "kinds": [], "reopened_at": "$$NOW"}
    return UpdateOne({"_id": hour}, [{"$set": {**empty, "token": "$$REMOVE"}}], upsert=True)


def forget() -> list[Document]:
    """Remove the counts of an hour, which can be counted anew at once unless reopened recently.

    The document stays, so that a search that has just read the counts learns that they are gone.
    """
    return [{"$set": {"until": "$_id"}}, {"$unset": ["counts", "kinds", "token"]}]


# -- counting events -------------------------------------------------------------------------


def live_events(span: Span) -> Document:
    """Match the live events received in `span`. Needs `LIVE_INDEX` as its hint."""
    begin, end = span
    return {"status": {"$in": sorted(LIVE_STATUSES)}, "received_at": {"$gte": begin, "$lt": end}}


def received_in(spans: Sequence[Span]) -> list[Document]:
    """Return one condition for each of `spans`, which matches the events received in it."""
    return [{"received_at": {"$gte": begin, "$lt": end}} for begin, end in spans]


def count_pairs(spans: Sequence[Span], query: Document) -> list[Document]:
    """Count the matching events received in `spans`, by hour, status and type.

    Needs the covering index as its hint.
    """
    return [
        {"$match": {**_by_kind(query), "$or": received_in(spans)}},
        {"$project": {"_id": 0, "received_at": 1, **dict.fromkeys(PAIR, 1)}},
        {"$group": {"_id": _with_hour(PAIR), "count": {"$sum": 1}}},
    ]


def count_kinds(spans: Sequence[Span]) -> list[Document]:
    """Count the events received in `spans` by hour and `KIND`, with their first and last instant.

    Needs the covering index as its hint.
    """
    received = {"first": {"$min": "$received_at"}, "last": {"$max": "$received_at"}}
    return [
        {"$match": {"$or": received_in(spans)}},
        {"$project": {"_id": 0, "received_at": 1, **dict.fromkeys(KIND, 1)}},
        {"$group": {"_id": _with_hour(KIND), "count": {"$sum": 1}, **received}},
    ]


def _with_hour(fields: Sequence[str]) -> Document:
    hour = {"$dateTrunc": {"date": "$received_at", "unit": "hour"}}
    return {"hour": hour, **{name: f"${name}" for name in fields}}


def _by_kind(query: Document) -> Document:
    return {name: condition for name, condition in query.items() if name in KIND}


# -- reading rollups -------------------------------------------------------------------------


def _condition(condition: Document, value: str) -> Document:
    """Turn one field's condition in a query into an expression."""
    [(operator, operand)] = condition.items()
    return {operator: [value, {"$literal": operand}]}


def _list_for(query: Document) -> str:
    """Return the shorter list in an hour's document that has all fields of the query."""
    return "counts" if _by_kind(query).keys() <= set(PAIR) else "kinds"


def _matching(query: Document, counted: str) -> object:
    """Return the matching elements of the list `counted`."""
    conditions = [_condition(each, f"$$this.{name}") for name, each in _by_kind(query).items()]
    if not conditions:
        return f"${counted}"
    return {"$filter": {"input": f"${counted}", "cond": {"$and": conditions}}}


def _total(query: Document, counted: str) -> object:
    """Return the sum of the matching elements of the list `counted`.

    In one pass: to make a list of them first takes twice as long.
    """
    increased = {"$add": ["$$value", "$$this.count"]}
    conditions = [_condition(each, f"$$this.{name}") for name, each in _by_kind(query).items()]
    sum_ = {"$cond": [{"$and": conditions}, increased, "$$value"]}
    return {"$reduce": {"input": f"${counted}", "initialValue": 0, "in": sum_}}


def _counted_in(span: Span, counted: str) -> list[Document]:
    begin, end = span
    return [
        {
            "$match": {
                "_id": {"$gte": begin, "$lt": end},
                "until": {"$lte": end},
                counted: {"$exists": True},
            }
        },
        {"$match": {"$expr": {"$gt": ["$until", "$_id"]}}},
    ]


def read_sums(
    span: Span,
    query: Document,
    *,
    total_only: bool = False,
    bins: tuple[str, int] | None = None,
) -> list[Document]:
    """Read, at one instant, how far the hours within `span` are counted, and the matching sums.

    Returns `until: [{_id, until}]` and one of:

    * `kinds: [{_id: {status, event_type}, count}]` and `histogram: [{_id, count}]`
    * with `total_only`, `total: [{count}]`
    * with `bins`, a unit and a number of at least one hour together,
      `status_counts: [{_id: {at, status}, count}]`
    """
    counted = _list_for(query)
    matching = _matching(query, counted)
    facets: dict[str, list[Document]] = {"until": [{"$project": {"until": 1}}]}
    if bins is not None:
        unit, size = bins
        at = {"$dateTrunc": {"date": "$_id", "unit": unit, "binSize": size}}
        facets["status_counts"] = [
            {"$unwind": "$matching"},
            {
                "$group": {
                    "_id": {"at": at, "status": "$matching.status"},
                    "count": {"$sum": "$matching.count"},
                }
            },
        ]
    elif total_only:
        matching = _total(query, counted)
        facets["total"] = [{"$group": {"_id": None, "count": {"$sum": "$matching"}}}]
    else:
        pair = {"status": "$matching.status", "event_type": "$matching.event_type"}
        facets["kinds"] = [
            {"$unwind": "$matching"},
            {"$group": {"_id": pair, "count": {"$sum": "$matching.count"}}},
        ]
        facets["histogram"] = [
            {"$project": {"count": {"$sum": "$matching.count"}}},
            {"$match": {"count": {"$gt": 0}}},
        ]
    return [
        *_counted_in(span, counted),
        {"$project": {"until": 1, "matching": matching}},
        {"$facet": facets},
    ]


def counted_hours(span: Span) -> Document:
    """Match the hours within `span` that have `kinds`. The caller reads their `until`."""
    begin, end = span
    in_span = {"_id": {"$gte": begin, "$lt": end}, "until": {"$lte": end}}
    return {**in_span, "kinds": {"$exists": True}}


def event_spans(span: Span, query: Document, hold_ms: int) -> list[Document]:
    """Read when the matching events in the hours within `span` were received, and how many.

    Returns `{_id, first, last, count}` for each hour with such events. An hour without `kinds`,
    or reopened in the last `hold_ms`, has no `first`: the caller drops what it has read of that
    hour before.
    """
    begin, end = span
    has_matching = {"kinds": {"$elemMatch": _by_kind(query)}}
    received = {
        "first": {"$min": "$matching.first"},
        "last": {"$max": "$matching.last"},
        "count": {"$sum": "$matching.count"},
    }
    dropped = [{"kinds": {"$exists": False}}, {"$expr": _reopened_recently(hold_ms)}]
    return [
        {"$match": {"_id": {"$gte": begin, "$lt": end}}},
        {"$match": {"$or": [has_matching, *dropped]}},
        {"$project": {"matching": _matching(query, "kinds")}},
        {"$project": received},
    ]


# -- spans and sums, in memory ---------------------------------------------------------------


def uncounted_spans(span: Span, counted: Iterable[Document]) -> list[Span]:
    """Return the parts of `span` outside the counted hours, in order; none is empty."""
    rest: list[Span] = []
    at, end = span
    for each in sorted(counted, key=lambda each: each["_id"]):
        if each["_id"] > at:
            rest.append((at, each["_id"]))
        at = max(at, each["until"])
    if at < end:
        rest.append((at, end))
    return rest


def possible_spans(
    span: Span, counted: Iterable[Document], hours: Iterable[Document], *, newest_first: bool
) -> list[Span]:
    """Return the parts of `span` in which matching events may be, in order; near ones are joined.

    `counted` is what `counted_hours` matched, and `hours` what `event_spans` returned later. These
    parts are the uncounted time and, in counted hours, from the first matching event to the last.
    If counts were extended between the two reads, the last event may lie beyond `span`.
    """
    by_hour = {each["_id"]: each for each in hours}
    dropped = {hour for hour, each in by_hour.items() if each["first"] is None}
    usable = [each for each in counted if each["_id"] not in dropped]
    with_events = [
        (by_hour[each["_id"]]["first"], min(by_hour[each["_id"]]["last"] + TICK, span[1]))
        for each in usable
        if each["_id"] in by_hour and by_hour[each["_id"]]["first"] < span[1]
    ]
    ordered = join(sorted([*with_events, *uncounted_spans(span, usable)]), near=True)
    return ordered[::-1] if newest_first else ordered


def join(spans: Iterable[Span], *, near: bool = False) -> list[Span]:
    """Join spans, ordered by their beginnings, that touch or overlap.

    With `near`, also those whose distance is less than an hour and than each of the two is long.
    """
    joined: list[Span] = []
    for begin, end in spans:
        if joined:
            before, until = joined[-1]
            distance = begin - until
            longest = min(until - before, end - begin, HOUR)
            if distance <= timedelta(0) or (near and distance < longest):
                joined[-1] = (before, max(until, end))
                continue
        joined.append((begin, end))
    return joined


def add(
    stored: Iterable[Document], counted: Iterable[Document], fields: Sequence[str]
) -> list[Document]:
    """Add what `count_kinds` counted to stored counts by these fields, `KIND` or `PAIR`."""
    sums: dict[tuple[Any, ...], Document] = {}
    new = ({**each, **each["_id"]} for each in counted)
    for each in (*stored, *new):
        kind = tuple(each.get(name) for name in fields)
        sum_ = sums.setdefault(kind, {**dict(zip(fields, kind, strict=True)), "count": 0})
        sum_["count"] += each["count"]
        if tuple(fields) == KIND:
            sum_["first"] = min(sum_.get("first", each["first"]), each["first"])
            sum_["last"] = max(sum_.get("last", each["last"]), each["last"])
    return list(sums.values())


def summary(stored: Document, counted: Sequence[Document]) -> Document:
    """Add up what `read_sums` and `count_pairs` returned.

    Returns `by_status`, `by_event_type` and `histogram`, each of `{_id, count}`, in order.
    """
    by_status: Counter[str] = Counter()
    by_event_type: Counter[str] = Counter()
    histogram: Counter[datetime] = Counter()
    for each in (*stored["kinds"], *counted):
        by_status[each["_id"]["status"]] += each["count"]
        by_event_type[each["_id"].get("event_type") or ""] += each["count"]
    for each in stored["histogram"]:
        histogram[each["_id"]] += each["count"]
    for each in counted:
        histogram[each["_id"]["hour"]] += each["count"]
    commonest = sorted(by_event_type.items(), key=lambda each: (-each[1], each[0]))
    return {
        "by_status": _listed(by_status.items()),
        "by_event_type": _listed(commonest[:MAX_EVENT_TYPES]),
        "histogram": _listed(sorted(histogram.items())),
    }


def _listed(pairs: Iterable[tuple[Any, int]]) -> list[Document]:
    return [{"_id": key, "count": count} for key, count in pairs]
