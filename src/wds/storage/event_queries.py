"""Which events operators mean: filters, orders, cursor positions and counts, as plain data. Pure.

What must stay true: a page, its counts, an export and a bulk action under the same filters mean
the same events, because all of them begin with `match`. Every filter but the idempotency key is
on a field of the index that `hint` names, so that counting reads no document.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from pymongo import ASCENDING, DESCENDING

from wds.domain.deliveries import Status
from wds.domain.events import ID_LENGTH
from wds.storage.indexes import (
    ATTEMPTS_INDEX,
    CODE_INDEX,
    COVERING_INDEX,
    KEY_INDEX,
    RETRIED,
    SOURCE_INDEX,
    STATUS_INDEX,
    TYPE_INDEX,
)
from wds.storage.rollup_queries import KIND, MAX_EVENT_TYPES, TICK, received_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wds.storage.mongo import Document
    from wds.storage.rollup_queries import Span

_FIRST_INSTANT = datetime(1, 1, 1, tzinfo=UTC)
_LAST_INSTANT = datetime(9999, 1, 1, tzinfo=UTC)

Order = list[tuple[str, int]]
"""Fields to sort by, each with its direction; always ends with `_id`, so it is total."""

SORTS: Mapping[str, Order] = {
    "-received_at": [("received_at", DESCENDING), ("_id", DESCENDING)],
    "received_at": [("received_at", ASCENDING), ("_id", ASCENDING)],
    "-attempt_count": [
        ("attempt_count", DESCENDING),
        ("received_at", DESCENDING),
        ("_id", DESCENDING),
    ],
    "attempt_count": [("attempt_count", ASCENDING), ("received_at", ASCENDING), ("_id", ASCENDING)],
}
"""Name in a request -> order. `-` is descending, as in JSON:API."""
NEWEST_FIRST = "-received_at"
OLDEST_FIRST = "received_at"

MAX_MERGED = 200
"""Most stretches of an index that MongoDB merges in order before it sorts instead.

`internalQueryMaxScansToExplode`,
https://github.com/mongodb/mongo/blob/master/src/mongo/db/query/query_knobs.idl
"""
TELLING_PREFIX = 5
"""From this many characters on, an id prefix leaves at most a millionth of the derived ids."""

KEPT = frozenset(
    {
        "status",
        "event_type",
        "source",
        "destination",
        "last_status_code",
        "min_attempts",
        "from_",
        "to",
    }
)
"""Filters by which counts are kept (`rollups`)."""


ANY: Document = {"received_at": {"$gte": _FIRST_INSTANT}}
"""Matches every event, from the covering index's first field on."""


class Position(NamedTuple):
    """A place in any of the orders: the last event that was seen."""

    received_at: datetime
    event_id: str
    attempt_count: int = 0


def position_of(event: Document) -> Position:
    """Return the place of an event, as stored or as projected."""
    return Position(event["received_at"], event["_id"], event["attempt_count"])


def match(
    *,
    status: Sequence[str] = (),
    event_type: Sequence[str] = (),
    source: Sequence[str] = (),
    destination: Sequence[str] = (),
    last_status_code: Sequence[int] = (),
    idempotency_key: str | None = None,
    id_prefix: str | None = None,
    min_attempts: int = 0,
    from_: datetime | None = None,
    to: datetime | None = None,
) -> Document:
    """Match events by the operators' filters, all of which must hold.

    Of several values one must fit. `from_` is inclusive, `to` exclusive; `id_prefix` is
    lower-case hex; `last_status_code` 0 means that the last attempt got no answer.
    """
    several = {
        "status": status,
        "event_type": event_type,
        "source": source,
        "destination": destination,
        "last_status_code": last_status_code,
    }
    wanted: Document = {name: {"$in": list(values)} for name, values in several.items() if values}
    if idempotency_key is not None:
        wanted["idempotency_key"] = idempotency_key
    if id_prefix:
        # All ids are hex, so none lies between the prefix followed by g and the next prefix.
        wanted["_id"] = {"$gte": id_prefix, "$lt": f"{id_prefix}g"}
    if min_attempts:
        wanted["attempt_count"] = {"$gte": min_attempts}
    # Always a bound on the covering index's first field: without one the planner reads documents.
    received: Document = {"$gte": from_ or _FIRST_INSTANT}
    if to is not None:
        received["$lt"] = to
    wanted["received_at"] = received
    return wanted


def span_of(wanted: Document) -> Span:
    """Return the range of time of `wanted`, from `match` or narrowed since; it may be empty."""
    begin, end = _FIRST_INSTANT, _LAST_INSTANT
    for each in (wanted, *wanted.get("$and", [])):
        received = each.get("received_at", {})
        begin = max(begin, received.get("$gte", begin))
        end = min(end, received.get("$lt", end))
        if received.get("$lte", end) < end:
            end = received["$lte"] + TICK
    return begin, end


def narrowed(wanted: Document, *more: Document) -> Document:
    """Return `wanted` with further conditions, each of which must hold as well."""
    return {**wanted, "$and": [*wanted.get("$and", []), *more]}


def after(wanted: Document, order: Order, position: Position) -> Document:
    """Narrow `wanted` to what follows `position` in `order`."""
    values = {
        "received_at": position.received_at,
        "_id": position.event_id,
        "attempt_count": position.attempt_count,
    }
    follows = [
        {
            **{name: values[name] for name, _ in order[:place]},
            field: {_beyond(direction): values[field]},
        }
        for place, (field, direction) in enumerate(order)
    ]
    first, direction = order[0]
    # Implied by the rest; said first, it bounds the index.
    bound = {first: {f"{_beyond(direction)}e": values[first]}}
    return narrowed(wanted, bound, {"$or": follows})


def _beyond(direction: int) -> str:
    return "$gt" if direction == ASCENDING else "$lt"


def hint(wanted: Document) -> str:
    """Return the index to count the matched events by; the planner alone would read documents."""
    if "idempotency_key" in wanted:
        return KEY_INDEX
    prefix = wanted.get("_id", {}).get("$gte", "")
    if len(prefix) >= TELLING_PREFIX:
        return "_id_"
    return _index_of_few(wanted) or COVERING_INDEX


def _index_of_few(wanted: Document) -> str | None:
    """Return the index that holds mostly what `wanted` matches, and all that it asks, if any.

    Of several stretches of time none: MongoDB would fetch each event to see whether it is in one.
    """
    if "$or" in wanted:
        return None
    if "last_status_code" in wanted:
        return CODE_INDEX
    return ATTEMPTS_INDEX if wanted.get("attempt_count", {}).get("$gte", 0) >= RETRIED else None


def is_kept(wanted: Document) -> bool:
    """Tell whether `rollups` knows about the events that `wanted`, from `match`, is about."""
    return wanted.keys() <= {*KIND, "received_at", "$and"}


def is_scattered(wanted: Document) -> bool:
    """Tell whether every index in order of time may hold much that `wanted` does not match.

    Where in time its events are is then to be asked of `rollups` first.
    """
    return is_kept(wanted) and _in_time_order(wanted)[1] is None


def in_time_order(wanted: Document) -> tuple[Document, str | None]:
    """Return `wanted`, from `match`, said so that an index has it in order of time, and that index.

    Left to itself the planner tries several, which for a page that few events are on takes longer
    than to read it. None where an id or a key finds the event, or a condition is none of `match`'s:
    there the planner's trial is the best that can be had.
    """
    said, index = _in_time_order(wanted)
    if index is None and wanted.keys() - {"$or"} <= {*KIND, "received_at", "$and"}:
        few = _index_of_few(wanted)
        return wanted, CODE_INDEX if few == CODE_INDEX else COVERING_INDEX
    return said, index


def _in_time_order(wanted: Document) -> tuple[Document, str | None]:
    """Return the index that holds in order of time what `wanted` matches and no more."""
    asked = wanted.keys() - {"received_at", "$and"}
    if len(asked) == 1 and (index := _ORDERED.get(*asked)):
        return wanted, index
    if not asked:
        return wanted, COVERING_INDEX
    if not "event_type" in asked <= {"status", "event_type"}:
        return wanted, None
    # Between equal types and statuses the index is in order; MongoDB merges so many stretches.
    said = {"status": {"$in": list(Status)}} | wanted
    stretches = len(set(said["event_type"]["$in"])) * len(set(said["status"]["$in"]))
    return (said, TYPE_INDEX) if stretches <= MAX_MERGED else (wanted, None)


_ORDERED: Mapping[str, str] = {
    "status": STATUS_INDEX,
    "source": SOURCE_INDEX,
    "last_status_code": CODE_INDEX,
}


def within(wanted: Document, spans: Sequence[Span]) -> Document:
    """Narrow `wanted` to what was received in any of `spans`, which lie in its range of time.

    The range of a single one is said so that every index can be read from its beginning.
    """
    others = {name: each for name, each in wanted.items() if name != "received_at"}
    if len(spans) == 1:
        [(begin, end)] = spans
        return {**others, "received_at": {"$gte": begin, "$lt": end}}
    return {**others, "$or": received_in(spans)}


class Part(NamedTuple):
    """Some of the events of a page, and their order."""

    wanted: Document
    order: Order


def by_attempts(wanted: Document, order: Order, position: Position | None) -> list[Part]:
    """Split what follows `position`, ordered by attempts: those that had several, one, none.

    The first are in the order of `ATTEMPTS_INDEX`, each of the others in order of time.
    """
    least = wanted.get("attempt_count", {}).get("$gte", 0)
    parts = []
    for number in (RETRIED, 1, 0):
        several = number == RETRIED
        if number < least and not several:
            continue
        said = {"attempt_count": {"$gte": max(least, RETRIED)} if several else {"$in": [number]}}
        part, its_order = {**wanted, **said}, order if several else order[1:]
        if position is not None:
            ahead = number - min(position.attempt_count, RETRIED)
            if ahead == 0:
                part = after(part, its_order, position)
            elif (ahead > 0) == (order[0][1] == DESCENDING):
                continue
        parts.append(Part(part, its_order))
    return parts if order[0][1] == DESCENDING else parts[::-1]


def places(wanted: Document, order: Order, limit: int) -> list[Document]:
    """List the places of the first events in an order that no index has.

    To be run with `hint`.
    """
    return [
        {"$match": wanted},
        {"$project": {"_id": 1, "received_at": 1, "attempt_count": 1}},
        {"$sort": dict(order)},
        {"$limit": limit},
    ]


def counts(wanted: Document) -> list[Document]:
    """Count the matched events by status, type and hour at once, so that all totals agree.

    To be run with `hint`.
    """
    return [
        {"$match": wanted},
        {"$project": {"_id": 0, "status": 1, "event_type": 1, "received_at": 1}},
        {
            "$group": {
                "_id": {
                    "status": "$status",
                    "event_type": "$event_type",
                    "hour": {"$dateTrunc": {"date": "$received_at", "unit": "hour"}},
                },
                "count": {"$sum": 1},
            }
        },
        {
            "$facet": {
                "by_status": _sums("$_id.status"),
                "by_event_type": [
                    *_sums({"$ifNull": ["$_id.event_type", ""]}),
                    {"$sort": {"count": DESCENDING, "_id": ASCENDING}},
                    {"$limit": MAX_EVENT_TYPES},
                ],
                "histogram": [*_sums("$_id.hour"), {"$sort": {"_id": ASCENDING}}],
            }
        },
    ]


def outcomes(wanted: Document, unit: str, bin_size: int) -> list[Document]:
    """Count the matched events by time and status: `{_id: {at, status}, count}`.

    `at` is the start of the bin, by MongoDB's own reckoning. To be run with `hint`.
    """
    received = {"date": "$received_at", "unit": unit, "binSize": bin_size}
    return [
        {"$match": wanted},
        {"$project": {"_id": 0, "status": 1, "received_at": 1}},
        {
            "$group": {
                "_id": {"at": {"$dateTrunc": received}, "status": "$status"},
                "count": {"$sum": 1},
            }
        },
    ]


def _sums(key: object) -> list[Document]:
    return [{"$group": {"_id": key, "count": {"$sum": "$count"}}}]


def is_id_prefix(text: str) -> bool:
    """Tell whether event ids can begin with `text`."""
    return 0 < len(text) <= ID_LENGTH and all(each in "0123456789abcdef" for each in text)
