"""MongoDB's side of `EventFilter`: queries, index hints, pages and counts, as plain data. Pure.

What must stay true: a page, its counts, an export and a bulk action with the same filter concern
the same events, because each begins with `match`. Every filter except the idempotency key is on a
field of the index that `hint` names, so that counting reads no document.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from pymongo import ASCENDING, DESCENDING

from wds.domain.deliveries import Status
from wds.domain.event_filter import FILTERS, Position
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

    from wds.domain.event_filter import EventFilter, Order
    from wds.storage.mongo import Document
    from wds.storage.rollup_queries import Span

_FIRST_INSTANT = datetime(1, 1, 1, tzinfo=UTC)
_LAST_INSTANT = datetime(9999, 1, 1, tzinfo=UTC)

MAX_MERGED = 200
"""Maximum number of index ranges that MongoDB merges in order; with more it sorts instead.

`internalQueryMaxScansToExplode`,
https://github.com/mongodb/mongo/blob/master/src/mongo/db/query/query_knobs.idl
"""
SELECTIVE_PREFIX = 5
"""From this many characters on, an id prefix matches at most a millionth of the derived ids."""

ANY: Document = {"received_at": {"$gte": _FIRST_INSTANT}}
"""Matches every event, by the covering index's first field."""

_MANY = [spec.name for spec in FILTERS if spec.many]


def position_of(event: Document) -> Position:
    """Return the position of an event, as stored or as projected."""
    return Position(event["received_at"], event["_id"], event["attempt_count"])


# -- queries --------------------------------------------------------------------------------


def match(event_filter: EventFilter) -> Document:
    """Return the query for the events that match the filter."""
    query: Document = {
        name: {"$in": list(values)} for name in _MANY if (values := getattr(event_filter, name))
    }
    if event_filter.idempotency_key is not None:
        query["idempotency_key"] = event_filter.idempotency_key
    if prefix := event_filter.id_prefix:
        # All ids are hex, so none lies between the prefix followed by g and the next prefix.
        query["_id"] = {"$gte": prefix, "$lt": f"{prefix}g"}
    if event_filter.min_attempts:
        query["attempt_count"] = {"$gte": event_filter.min_attempts}
    # Always a bound on the covering index's first field: without one the planner reads documents.
    received: Document = {"$gte": event_filter.from_ or _FIRST_INSTANT}
    if event_filter.to is not None:
        received["$lt"] = event_filter.to
    query["received_at"] = received
    return query


def narrow(query: Document, *conditions: Document) -> Document:
    """Add conditions to a query, each of which must hold as well."""
    return {**query, "$and": [*query.get("$and", []), *conditions]}


def after(query: Document, order: Order, position: Position) -> Document:
    """Narrow a query to the events that follow `position` in `order`."""
    values = {
        "received_at": position.received_at,
        "_id": position.event_id,
        "attempt_count": position.attempt_count,
    }
    follows = [
        {
            **{name: values[name] for name, _ in order[:index]},
            field: {_beyond(direction): values[field]},
        }
        for index, (field, direction) in enumerate(order)
    ]
    first, direction = order[0]
    # The other condition implies this one; only this one bounds the index.
    bound = {first: {f"{_beyond(direction)}e": values[first]}}
    return narrow(query, bound, {"$or": follows})


def _beyond(direction: int) -> str:
    return "$gt" if direction == ASCENDING else "$lt"


def time_span(query: Document) -> Span:
    """Return the time span that a query from `match`, narrowed or not, covers; it may be empty."""
    begin, end = _FIRST_INSTANT, _LAST_INSTANT
    for each in (query, *query.get("$and", [])):
        received = each.get("received_at", {})
        begin = max(begin, received.get("$gte", begin))
        end = min(end, received.get("$lt", end))
        if received.get("$lte", end) < end:
            end = received["$lte"] + TICK
    return begin, end


def within(query: Document, spans: Sequence[Span]) -> Document:
    """Narrow a query to events received in one of `spans`, all of which its time span contains.

    A single span replaces the query's own, so that every index can be read from its beginning.
    """
    others = {name: each for name, each in query.items() if name != "received_at"}
    if len(spans) == 1:
        [(begin, end)] = spans
        return {**others, "received_at": {"$gte": begin, "$lt": end}}
    return {**others, "$or": received_in(spans)}


# -- index hints ----------------------------------------------------------------------------


def hint(query: Document) -> str:
    """Return the index to count matching events by; the planner alone would read documents."""
    if "idempotency_key" in query:
        return KEY_INDEX
    prefix = query.get("_id", {}).get("$gte", "")
    if len(prefix) >= SELECTIVE_PREFIX:
        return "_id_"
    return _selective_index(query) or COVERING_INDEX


def _selective_index(query: Document) -> str | None:
    """Return an index with all fields of the query that holds few events besides the matching ones.

    None if the query is for several spans: MongoDB would fetch each event to compare its time.
    """
    if "$or" in query:
        return None
    if "last_status_code" in query:
        return CODE_INDEX
    return ATTEMPTS_INDEX if query.get("attempt_count", {}).get("$gte", 0) >= RETRIED else None


def counted_by_rollups(query: Document) -> bool:
    """Tell whether the rollups can count the events of a query from `match`."""
    return query.keys() <= {*KIND, "received_at", "$and"}


def is_scattered(query: Document) -> bool:
    """Tell whether matching events may be rare in every index that has time order.

    The rollups then find the spans to search.
    """
    return counted_by_rollups(query) and _in_time_order(query)[1] is None


def in_time_order(query: Document) -> tuple[Document, str | None]:
    """Return the index that has the matching events in time order, and the query in its terms.

    The planner alone tries several indexes, which for a page with few events takes longer than to
    read it. The index is None if an id or a key finds the events, or if a condition does not come
    from `match`: the planner's trial is then the best choice.
    """
    rewritten, index = _in_time_order(query)
    if index is None and query.keys() - {"$or"} <= {*KIND, "received_at", "$and"}:
        selective = _selective_index(query)
        return query, CODE_INDEX if selective == CODE_INDEX else COVERING_INDEX
    return rewritten, index


def _in_time_order(query: Document) -> tuple[Document, str | None]:
    """As `in_time_order`, but the index is None if every index also holds other events."""
    fields = query.keys() - {"received_at", "$and"}
    if len(fields) == 1 and (index := _TIME_ORDERED.get(*fields)):
        return query, index
    if not fields:
        return query, COVERING_INDEX
    if not "event_type" in fields <= {"status", "event_type"}:
        return query, None
    # The index is in time order within each pair of type and status; MongoDB merges these ranges.
    rewritten = {"status": {"$in": list(Status)}} | query
    ranges = len(set(rewritten["event_type"]["$in"])) * len(set(rewritten["status"]["$in"]))
    return (rewritten, TYPE_INDEX) if ranges <= MAX_MERGED else (query, None)


_TIME_ORDERED: Mapping[str, str] = {
    "status": STATUS_INDEX,
    "source": SOURCE_INDEX,
    "last_status_code": CODE_INDEX,
}


# -- pages -----------------------------------------------------------------------------------


class OrderedQuery(NamedTuple):
    """A query, and the order of its events."""

    query: Document
    order: Order


def split_by_attempts(
    query: Document, order: Order, position: Position | None
) -> list[OrderedQuery]:
    """Split a query ordered by attempts into those for events with several attempts, one and none.

    `ATTEMPTS_INDEX` has the first in order; each of the others is in time order. Parts that end
    before `position` are left out.
    """
    least = query.get("attempt_count", {}).get("$gte", 0)
    descending = order[0][1] == DESCENDING
    parts = []
    for number in (RETRIED, 1, 0):
        several = number == RETRIED
        if number < least and not several:
            continue
        attempts = {"$gte": max(least, RETRIED)} if several else {"$in": [number]}
        part = OrderedQuery({**query, "attempt_count": attempts}, order if several else order[1:])
        if position is not None:
            ahead = number - min(position.attempt_count, RETRIED)
            if ahead == 0:
                part = part._replace(query=after(part.query, part.order, position))
            elif (ahead > 0) == descending:
                continue
        parts.append(part)
    return parts if descending else parts[::-1]


def sort_keys(query: Document, order: Order, limit: int) -> list[Document]:
    """Read the sort fields of the first events in an order that no index has.

    Needs the hint that `hint` returns.
    """
    return [
        {"$match": query},
        {"$project": {"_id": 1, "received_at": 1, "attempt_count": 1}},
        {"$sort": dict(order)},
        {"$limit": limit},
    ]


# -- counts ----------------------------------------------------------------------------------


def counts(query: Document) -> list[Document]:
    """Count matching events by status, type and hour in one reading, so that all totals agree.

    Needs the hint that `hint` returns.
    """
    return [
        {"$match": query},
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


def status_counts(query: Document, unit: str, bin_size: int) -> list[Document]:
    """Count matching events by time and status: `{_id: {at, status}, count}`.

    `at` is the start of the bin, as MongoDB's `$dateTrunc` computes it. Needs the hint that `hint`
    returns.
    """
    received = {"date": "$received_at", "unit": unit, "binSize": bin_size}
    return [
        {"$match": query},
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
