"""Every document, filter, update and pipeline of the kept hours, as plain data. Pure.

One document an hour in which events were received (`rollups` says when it may be trusted):

    _id         the hour, UTC
    until       what the counts cover: events received from `_id` on and before this
    counts      [{status, event_type, count}], all of final statuses
    kinds       the same events by all of `KIND`: [{…, count, first, last}], with when the first and
                the last of each kind were received; absent where they are too many
    token       of the replica that is extending the counts now
    reopened_at when finished events of the hour were last about to live again

Filters are given as `filters.match` writes them, of no other fields than `KIND` and `received_at`.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pymongo import UpdateOne

from wds.domain.deliveries import Status
from wds.storage.indexes import STATUS_INDEX

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wds.storage.mongo import Document

HOURS = "hour_kinds"
PAIR = ("status", "event_type")
KIND = (*PAIR, "source", "destination", "last_status_code", "attempt_count")
"""Fields of an event by which it is counted."""
HOUR = timedelta(hours=1)
LIVE = frozenset({Status.RECEIVED, Status.DELIVERING})
LIVE_INDEX = STATUS_INDEX
TICK = timedelta(milliseconds=1)
"""Instants in the database are so far apart at least."""
MAX_EVENT_TYPES = 1000
"""Most event types that an aggregation lists, the commonest first."""

Span = tuple[datetime, datetime]
"""From the first inclusive to the second exclusive."""


def start_of(instant: datetime) -> datetime:
    """Return the beginning of the hour that `instant` lies in."""
    return instant.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def take(hour: datetime, token: str, hold_ms: int) -> UpdateOne:
    """Announce that the counts of `hour` are being extended, unless it was reopened lately."""
    begin = {"$literal": hour}
    nothing = {"$lte": [{"$ifNull": ["$until", begin]}, begin]}
    lately = {"$gt": ["$reopened_at", {"$subtract": ["$$NOW", hold_ms]}]}
    return UpdateOne(
        {"_id": hour},
        [
            {
                "$set": {
                    "token": {"$cond": [lately, "$$REMOVE", {"$literal": token}]},
                    "until": {"$ifNull": ["$until", begin]},
                    "counts": {"$ifNull": ["$counts", []]},
                    "kinds": {"$cond": [nothing, [], "$kinds"]},
                }
            }
        ],
        upsert=True,
    )


def extend(
    hour: datetime,
    token: str,
    until: datetime,
    counts: Sequence[Document],
    kinds: Sequence[Document] | None,
) -> UpdateOne:
    """Set new counts, unless another replica or a reopening has come in between."""
    values: Document = {"until": until, "counts": list(counts)}
    gone = {"token": ""}
    if kinds is None:
        gone["kinds"] = ""
    else:
        values["kinds"] = list(kinds)
    return UpdateOne({"_id": hour, "token": token}, {"$set": values, "$unset": gone})


def reopen(hour: datetime) -> UpdateOne:
    """Forget the counts of `hour`, and keep it from being counted for a while."""
    fresh = {"until": {"$literal": hour}, "counts": [], "kinds": [], "reopened_at": "$$NOW"}
    return UpdateOne({"_id": hour}, [{"$set": {**fresh, "token": "$$REMOVE"}}], upsert=True)


def forget() -> list[Document]:
    """Forget the counts of an hour, to be made anew at once if it was not reopened lately.

    It stays known as one of which nothing is kept: whoever has just read otherwise has to be told.
    """
    return [{"$set": {"until": "$_id"}}, {"$unset": ["counts", "kinds", "token"]}]


def live_in(span: Span) -> Document:
    """Match the live events received in `span`; to be looked up in `LIVE_INDEX`."""
    begin, end = span
    return {"status": {"$in": sorted(LIVE)}, "received_at": {"$gte": begin, "$lt": end}}


def received_in(spans: Sequence[Span]) -> list[Document]:
    """List what each event received in `spans` matches one of."""
    return [{"received_at": {"$gte": begin, "$lt": end}} for begin, end in spans]


def tally(spans: Sequence[Span], wanted: Document) -> list[Document]:
    """Count the wanted events received in `spans`, by hour, status and type.

    To be run with the covering index as its hint.
    """
    return [
        {"$match": {**_by_kind(wanted), "$or": received_in(spans)}},
        {"$project": {"_id": 0, "received_at": 1, **dict.fromkeys(PAIR, 1)}},
        {"$group": {"_id": _in_its_hour(PAIR), "count": {"$sum": 1}}},
    ]


def kinds(spans: Sequence[Span]) -> list[Document]:
    """Count the events received in `spans` by hour and `KIND`, and tell the first and the last.

    To be run with the covering index as its hint.
    """
    received = {"first": {"$min": "$received_at"}, "last": {"$max": "$received_at"}}
    return [
        {"$match": {"$or": received_in(spans)}},
        {"$project": {"_id": 0, "received_at": 1, **dict.fromkeys(KIND, 1)}},
        {"$group": {"_id": _in_its_hour(KIND), "count": {"$sum": 1}, **received}},
    ]


def _in_its_hour(fields: Sequence[str]) -> Document:
    hour = {"$dateTrunc": {"date": "$received_at", "unit": "hour"}}
    return {"hour": hour, **{name: f"${name}" for name in fields}}


def _by_kind(wanted: Document) -> Document:
    return {name: condition for name, condition in wanted.items() if name in KIND}


def _holds(condition: Document, value: str) -> Document:
    """Say one field's condition, as `filters` writes it, as an expression."""
    [(operator, operand)] = condition.items()
    return {operator: [value, {"$literal": operand}]}


def _list_for(wanted: Document) -> str:
    """Return the shorter list in an hour's document that tells the wanted events apart."""
    return "counts" if _by_kind(wanted).keys() <= set(PAIR) else "kinds"


def _chosen(wanted: Document, counted: str) -> object:
    """Return the wanted elements of the list `counted`."""
    conditions = _by_kind(wanted)
    holds = [_holds(each, f"$$this.{name}") for name, each in conditions.items()]
    if not holds:
        return f"${counted}"
    return {"$filter": {"input": f"${counted}", "cond": {"$and": holds}}}


def _total(wanted: Document, counted: str) -> object:
    """Return how many the wanted elements of the list `counted` count.

    In one go: to make a list of them first takes twice as long.
    """
    added = {"$add": ["$$value", "$$this.count"]}
    conditions = [_holds(each, f"$$this.{name}") for name, each in _by_kind(wanted).items()]
    sum_ = {"$cond": [{"$and": conditions}, added, "$$value"]}
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


def covered(
    span: Span,
    wanted: Document,
    *,
    total_only: bool = False,
    bins: tuple[str, int] | None = None,
) -> list[Document]:
    """Read, at once, which hours within `span` are counted how far, and the sums of the wanted.

    Gives `{until: [{_id, until}], total: [{count}]}` or, with more, instead of the total
    `kinds: [{_id: {status, event_type}, count}]` and `histogram: [{_id, count}]`; with `bins`, a
    unit and how many of it, not less than an hour, `outcomes: [{_id: {at, status}, count}]`.
    """
    counted = _list_for(wanted)
    chosen = _chosen(wanted, counted)
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
        chosen = _total(wanted, counted)
        facets["total"] = [{"$group": {"_id": None, "count": {"$sum": "$chosen"}}}]
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
        *_counted_in(span, counted),
        {"$project": {"until": 1, "chosen": chosen}},
        {"$facet": facets},
    ]


def kept_in(span: Span) -> Document:
    """Match the hours within `span` of which kinds are kept; to be read for `until`."""
    begin, end = span
    in_span = {"_id": {"$gte": begin, "$lt": end}, "until": {"$lte": end}}
    return {**in_span, "kinds": {"$exists": True}}


def stretches(span: Span, wanted: Document, hold_ms: int) -> list[Document]:
    """Read where in the hours within `span` the wanted events are: `{_id, first, last, count}`.

    That is when the first and the last of them in that hour were received, and how many there are;
    hours without any are left out. Those that were reopened in the last `hold_ms`, and those of
    which no kinds are kept, have no `first`: whoever was told before that they are kept is told so
    that they are not any more.
    """
    begin, end = span
    lately = {"$gt": ["$reopened_at", {"$subtract": ["$$NOW", hold_ms]}]}
    there = {"kinds": {"$elemMatch": _by_kind(wanted)}}
    found = {
        "first": {"$min": "$chosen.first"},
        "last": {"$max": "$chosen.last"},
        "count": {"$sum": "$chosen.count"},
    }
    return [
        {"$match": {"_id": {"$gte": begin, "$lt": end}}},
        {"$match": {"$or": [there, {"kinds": {"$exists": False}}, {"$expr": lately}]}},
        {"$project": {"chosen": _chosen(wanted, "kinds")}},
        {"$project": found},
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


def places(
    span: Span, kept: Iterable[Document], found: Iterable[Document], *, newest_first: bool
) -> list[Span]:
    """Return the parts of `span` in which events may be, in order; parts near each other are one.

    `found` is what `stretches` gave, later than `kept_in` gave `kept`. These are what is not
    counted and, of what is, from the first to the last of the events. Counts that were extended
    between the two may tell of a last one that lies beyond `span`.
    """
    known = {each["_id"]: each for each in found}
    reopened = {hour for hour, each in known.items() if each["first"] is None}
    counted = [each for each in kept if each["_id"] not in reopened]
    there = [
        (known[each["_id"]]["first"], min(known[each["_id"]]["last"] + TICK, span[1]))
        for each in counted
        if each["_id"] in known and known[each["_id"]]["first"] < span[1]
    ]
    ordered = joined(sorted([*there, *gaps(span, counted)]), near=True)
    return ordered[::-1] if newest_first else ordered


def joined(spans: Iterable[Span], *, near: bool = False) -> list[Span]:
    """Join spans, in order of their beginnings, that touch or overlap.

    If `near`, also those that are less apart than an hour and than each of the two is long.
    """
    whole: list[Span] = []
    for begin, end in spans:
        if whole:
            before, until = whole[-1]
            apart = begin - until
            if apart <= timedelta(0) or (near and apart < min(until - before, end - begin, HOUR)):
                whole[-1] = (before, max(until, end))
                continue
        whole.append((begin, end))
    return whole


def added(
    kept: Iterable[Document], tallied: Iterable[Document], fields: Sequence[str]
) -> list[Document]:
    """Add what `kinds` counted to what is kept by these fields, all of `KIND` or a `PAIR`."""
    sums: dict[tuple[Any, ...], Document] = {}
    fresh = ({**each, **each["_id"]} for each in tallied)
    for each in (*kept, *fresh):
        kind = tuple(each.get(name) for name in fields)
        sum_ = sums.setdefault(kind, {**dict(zip(fields, kind, strict=True)), "count": 0})
        sum_["count"] += each["count"]
        if tuple(fields) == KIND:
            sum_["first"] = min(sum_.get("first", each["first"]), each["first"])
            sum_["last"] = max(sum_.get("last", each["last"]), each["last"])
    return list(sums.values())


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
