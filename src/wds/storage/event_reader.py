"""Reading events, live or finished, for operators. It never holds up the queue."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from wds.domain.event_filter import NEWEST_FIRST, OLDEST_FIRST, SORTS
from wds.storage import collection_names, event_queries, indexes
from wds.storage.event_queries import OrderedQuery
from wds.storage.mongo import READ_BUDGET_S, SEARCH_LIMIT_MS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from datetime import datetime

    from wds.domain.event_filter import Order, Position
    from wds.storage.mongo import Document, MongoDatabase
    from wds.storage.rollup_queries import Span
    from wds.storage.rollups import Rollups

EXPORT_BUDGET_S = 30.0
"""Seconds for which a page of an export is retried before the export ends early."""
PAGE_BYTES = 8 * 1024 * 1024
"""Bytes of payload that end a page."""
PAYLOADS_AT_ONCE = 8
"""Events in one answer of MongoDB when payloads are read."""
SCAN_PAGE = 500
"""Events in a page of an export or a scan."""
SPANS_AT_ONCE = 50
"""Maximum number of time spans in one query; with more, planning the query takes longer."""
FEW = 200
"""Up to this many matching events are sorted; for more, an index in that order is read."""
STATUS_COUNTS_TIMEOUT_MS = 4_000


@dataclass
class _Window:
    """The part of the matching events that is still to be read. Each event read shrinks it.

    Attributes:
        skip: number of events to skip first.
        remaining: number of events to return after these.
        projection: fields of each event, as MongoDB takes it; None for all.
        batch_size: events in one answer of MongoDB.
    """

    skip: int
    remaining: int
    projection: Document | None
    batch_size: int


class EventReader:
    """Read access to the events of one database.

    Every method may raise `StoreUnavailableError`, and those that read more than one event
    `SearchTooSlowError`.
    """

    def __init__(self, mongo: MongoDatabase, rollups: Rollups) -> None:
        """Read over `mongo`; `rollups` finds the time spans to search."""
        self._rollups = rollups
        self._events = mongo.db[collection_names.EVENTS]
        self._try_for = mongo.try_for
        self._search = mongo.search

    async def get(self, event_id: str) -> Document | None:
        """Return a whole event, or None."""
        return await self._try_for(READ_BUDGET_S, lambda: self._events.find_one({"_id": event_id}))

    # -- pages -----------------------------------------------------------------------------

    async def page(
        self,
        query: Document,
        *,
        sort: str = NEWEST_FIRST,
        skip: int,
        limit: int,
        after: Position | None,
        include_payload: bool,
    ) -> tuple[list[Document], bool]:
        """Return matching events in the order `sort`, after `skip` of them or after a position.

        The page ends at `limit` events or once it holds `PAGE_BYTES` of payload. The flag is True
        if more events follow.
        """
        projection = None if include_payload else {"payload": 0}
        batch_size = PAYLOADS_AT_ONCE if include_payload else limit + 1
        window = _Window(skip, limit + 1, projection, batch_size)
        order = SORTS[sort]
        rest = query if after is None else event_queries.after(query, order, after)
        if order[0][0] == "received_at":
            documents = self._by_time(OrderedQuery(rest, order), window)
        else:
            documents = self._by_attempts(query, OrderedQuery(rest, order), after, window)

        async def read() -> tuple[list[Document], bool]:
            page: list[Document] = []
            size = 0
            async with aclosing(documents):
                async for document in documents:
                    if len(page) == limit or size >= PAGE_BYTES:
                        return page, True
                    page.append(document)
                    size += len(document.get("payload", b""))
            return page, False

        return await self._search(read)

    async def _by_time(self, part: OrderedQuery, window: _Window) -> AsyncGenerator[Document]:
        """Yield events in time order.

        If no index separates them from other events, the rollups find the spans to search.
        """
        if not event_queries.is_scattered(part.query):
            query, index = event_queries.in_time_order(part.query)
            async with aclosing(self._find(query, index, part.order, window)) as documents:
                async for document in documents:
                    yield document
            return
        newest_first = part.order[0][1] < 0
        async with aclosing(self._rollups.spans(part.query, newest_first=newest_first)) as found:
            async for spans, _ in found:
                for start in range(0, len(spans), SPANS_AT_ONCE):
                    within = event_queries.within(part.query, spans[start : start + SPANS_AT_ONCE])
                    query, index = event_queries.in_time_order(within)
                    async with aclosing(self._find(query, index, part.order, window)) as documents:
                        async for document in documents:
                            yield document
                    if not window.remaining:
                        return

    async def _by_attempts(
        self, query: Document, rest: OrderedQuery, after: Position | None, window: _Window
    ) -> AsyncGenerator[Document]:
        """Yield events ordered by attempts. `rest` is `query` narrowed to the events after `after`.

        A few events are read and sorted. Of many, an index has those with several attempts in
        order, and the others are in time order.
        """
        if not event_queries.counted_by_rollups(query):
            async for document in self._sorted(rest, [event_queries.time_span(query)], window):
                yield document
            return
        spans, count = await self._spans_of_few(query)
        if count <= FEW:
            async for document in self._sorted(rest, spans, window):
                yield document
            return
        for part in event_queries.split_by_attempts(query, rest.order, after):
            if part.order == rest.order:
                spans, count = await self._spans_of_few(part.query)
                if count <= FEW:
                    read = self._sorted(part, spans, window)
                else:
                    read = self._find(part.query, indexes.ATTEMPTS_INDEX, part.order, window)
            else:
                read = self._by_time(part, window)
            async with aclosing(read) as documents:
                async for document in documents:
                    yield document
            if not window.remaining:
                return

    async def _spans_of_few(self, query: Document) -> tuple[list[Span], int]:
        """Return the spans with matching events and how many the rollups count.

        Incomplete once the count exceeds `FEW`.
        """
        spans: list[Span] = []
        count = 0
        async with aclosing(self._rollups.spans(query, newest_first=True)) as found:
            async for some, number in found:
                spans += some
                count += number
                if count > FEW:
                    break
        return spans, count

    async def _find(
        self, query: Document, index: str | None, order: Order, window: _Window
    ) -> AsyncGenerator[Document]:
        """Yield events in an order that the index has, and shrink the window by them."""
        cursor = self._events.find(
            query,
            window.projection,
            batch_size=window.batch_size,
            max_time_ms=SEARCH_LIMIT_MS,
            hint=index,
        )
        skip, window.skip = window.skip, 0
        empty = True
        async with aclosing(
            _documents(cursor.sort(order).skip(skip).limit(window.remaining))
        ) as documents:
            async for document in documents:
                empty = False
                window.remaining -= 1
                yield document
        if empty and skip:
            # All matching events were skipped; the rest of `skip` applies to the next query.
            hinted: dict[str, Any] = {} if index is None else {"hint": index}
            window.skip = skip - await self._events.count_documents(
                query, limit=skip, maxTimeMS=SEARCH_LIMIT_MS, **hinted
            )

    async def _sorted(
        self, part: OrderedQuery, spans: list[Span], window: _Window
    ) -> AsyncGenerator[Document]:
        """Yield events in an order that no index has: sort their keys, then read the first ones.

        An event whose key changes between the two neither leaves a gap nor ends the page early.
        """
        while True:
            keys: list[Document] = []
            for start in range(0, len(spans), SPANS_AT_ONCE):
                within = event_queries.within(part.query, spans[start : start + SPANS_AT_ONCE])
                cursor = self._events.aggregate(
                    event_queries.sort_keys(within, part.order, window.skip + window.remaining),
                    hint=event_queries.hint(within),
                    maxTimeMS=SEARCH_LIMIT_MS,
                )
                keys += await cursor.to_list(None)
            limit = window.remaining
            first = _in_order(keys, part.order)[window.skip : window.skip + limit]
            window.skip = max(window.skip - len(keys), 0)
            for start in range(0, len(first), window.batch_size):
                batch = first[start : start + window.batch_size]
                for document in await self._read_sorted(batch, part, window):
                    window.remaining -= 1
                    yield document
            if len(first) < limit or not window.remaining:
                return
            last = event_queries.position_of(first[-1])
            part = part._replace(query=event_queries.after(part.query, part.order, last))

    async def _read_sorted(
        self, keys: list[Document], part: OrderedQuery, window: _Window
    ) -> list[Document]:
        """Return the events with these sort keys that still match, in their order by now.

        They are sorted again after reading: an event whose attempt count has changed meanwhile may
        now lie beyond the last key. It is left out here and found by the next query.
        """
        query = event_queries.narrow(part.query, {"_id": {"$in": [each["_id"] for each in keys]}})
        cursor = self._events.find(
            query, window.projection, max_time_ms=SEARCH_LIMIT_MS, hint="_id_"
        )
        last = keys[-1]
        ordered = _in_order([*await cursor.to_list(None), last], part.order)
        return ordered[: next(index for index, each in enumerate(ordered) if each is last)]

    # -- all events, a page at a time ------------------------------------------------------

    async def export(
        self, query: Document, *, sort: str, include_payload: bool
    ) -> AsyncGenerator[list[Document], None]:
        """Yield all matching events, a page at a time, in constant memory.

        Each page is a query of its own, so an export can take as long as it needs.
        """
        after: Position | None = None
        more = True

        async def read() -> tuple[list[Document], bool]:
            return await self.page(
                query,
                sort=sort,
                skip=0,
                limit=SCAN_PAGE,
                after=after,
                include_payload=include_payload,
            )

        while more:
            page, more = await self._try_for(EXPORT_BUDGET_S, read)
            if page:
                yield page
                after = event_queries.position_of(page[-1])

    async def scan(self, *, payloads: bool) -> AsyncIterator[list[Document]]:
        """Yield all events, a page at a time, in the order of their ids, in constant memory.

        Each page is a query of its own, so a scan can take as long as it needs. A page ends once
        it holds `PAGE_BYTES` of payload.
        """
        last = ""

        async def read() -> list[Document]:
            projection = None if payloads else {"payload": 0}
            batch_size = PAYLOADS_AT_ONCE if payloads else SCAN_PAGE
            cursor = self._events.find({"_id": {"$gt": last}}, projection, batch_size=batch_size)
            page: list[Document] = []
            size = 0
            async with aclosing(_documents(cursor.sort("_id", 1).limit(SCAN_PAGE))) as documents:
                async for document in documents:
                    page.append(document)
                    size += len(document.get("payload", b""))
                    if size >= PAGE_BYTES:
                        break
            return page

        while page := await self._try_for(READ_BUDGET_S, read):
            yield page
            last = page[-1]["_id"]

    # -- counts ----------------------------------------------------------------------------

    async def estimated_count(self) -> int:
        """Return the approximate number of events, from MongoDB's metadata."""
        return await self._try_for(READ_BUDGET_S, self._events.estimated_document_count)

    async def total(self, query: Document) -> int:
        """Count the matching events."""
        return await self._search(
            lambda: self._events.count_documents(
                query, hint=event_queries.hint(query), maxTimeMS=SEARCH_LIMIT_MS
            )
        )

    async def counts(self, query: Document) -> Document:
        """Count matching events: `by_status`, `by_event_type`, `histogram`, each of `{_id, count}`.

        All come from one reading, so they agree. The types are the `MAX_EVENT_TYPES` commonest.
        """
        cursor = self._events.aggregate(
            event_queries.counts(query), hint=event_queries.hint(query), maxTimeMS=SEARCH_LIMIT_MS
        )
        [counts] = await self._search(lambda: cursor.to_list(None))
        return counts

    async def status_counts(
        self, query: Document, unit: str, bin_size: int
    ) -> list[tuple[datetime, str, int]]:
        """Count matching events by time and status: `(start of the bin, status, count)`.

        MongoDB gives up after `STATUS_COUNTS_TIMEOUT_MS`, because a page waits for the answer.
        """
        cursor = self._events.aggregate(
            event_queries.status_counts(query, unit, bin_size),
            hint=event_queries.hint(query),
            maxTimeMS=STATUS_COUNTS_TIMEOUT_MS,
        )
        counts = await self._search(lambda: cursor.to_list(None))
        return [(each["_id"]["at"], each["_id"]["status"], each["count"]) for each in counts]

    async def oldest(self) -> datetime | None:
        """Return when the oldest event was received; None if there are no events."""
        first = await self._try_for(
            0,
            lambda: self._events.find_one(
                event_queries.ANY, {"_id": 0, "received_at": 1}, sort=SORTS[OLDEST_FIRST]
            ),
        )
        return None if first is None else first["received_at"]


def _in_order(events: list[Document], order: Order) -> list[Document]:
    """Sort events; equal ones keep their order."""
    for field, direction in reversed(order):
        events = sorted(events, key=itemgetter(field), reverse=direction < 0)
    return events


async def _documents(cursor: Any) -> AsyncGenerator[Document, None]:  # noqa: ANN401 - motor's own
    """Yield the documents of a cursor, and close it in any case."""
    try:
        async for document in cursor:
            yield document
    finally:
        await cursor.close()
