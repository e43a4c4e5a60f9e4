"""Reading events, finished or not, as operators do. Never in the way of the queue."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from wds.storage import collection_names, event_queries, indexes
from wds.storage.mongo import READ_BUDGET_S, SEARCH_LIMIT_MS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from datetime import datetime

    from wds.storage.event_queries import Position
    from wds.storage.mongo import Document, MongoDatabase
    from wds.storage.rollup_queries import Span
    from wds.storage.rollups import Rollups

EXPORT_BUDGET_S = 30.0
"""Seconds that a page of an export is retried before the export ends early."""
PAGE_BYTES = 8 * 1024 * 1024
PAYLOADS_AT_ONCE = 8
SCAN_PAGE = 500
SPANS_AT_ONCE = 50
"""Most stretches of time in one query: it takes longer to plan the more they are."""
FEW = 200
"""So many matching events are sorted rather than looked for among all that are in order."""
OUTCOMES_TIMEOUT_MS = 4_000


@dataclass
class _Cut:
    """What of all matching events is still to be read: fewer as they are.

    Attributes:
        skip: how many are to be passed over.
        left: how many to return after these.
        fields: projection of each.
        batch: how many documents come in one answer.
    """

    skip: int
    left: int
    fields: Document | None
    batch: int


class EventReader:
    """Read access to the events of one database. What cannot be read is `StoreUnavailableError`.

    Whatever reads more than one event may also be a `SearchTooSlowError`.
    """

    def __init__(self, mongo: MongoDatabase, rollups: Rollups) -> None:
        """Take the connection to read over, and what knows where finished events are."""
        self._rollups = rollups
        self._events = mongo.db[collection_names.EVENTS]
        self._try_for = mongo.try_for
        self._search = mongo.search

    async def get(self, event_id: str) -> Document | None:
        """Return a whole event, or None."""
        return await self._try_for(READ_BUDGET_S, lambda: self._events.find_one({"_id": event_id}))

    async def page(
        self,
        match: Document,
        *,
        sort: str = event_queries.NEWEST_FIRST,
        skip: int,
        limit: int,
        after: Position | None,
        include_payload: bool,
    ) -> tuple[list[Document], bool]:
        """Return matching events in the order `sort`, from `skip` on or from a cursor position.

        At most `limit` of them and no more once they hold `PAGE_BYTES` of payload; True with
        them if there are others after.
        """
        fields = None if include_payload else {"payload": 0}
        batch = PAYLOADS_AT_ONCE if include_payload else limit + 1
        order = event_queries.SORTS[sort]
        wanted = match if after is None else event_queries.after(match, order, after)
        cut = _Cut(skip, limit + 1, fields, batch)
        if order[0][0] == "received_at":
            documents = self._by_time(event_queries.Part(wanted, order), cut)
        else:
            documents = self._by_attempts(match, event_queries.Part(wanted, order), after, cut)

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

    async def _by_time(self, part: event_queries.Part, cut: _Cut) -> AsyncGenerator[Document]:
        """Yield the events of a part that is in order of time.

        Where no index holds them apart from others, kept counts say where to look.
        """
        if not event_queries.is_scattered(part.wanted):
            said, index = event_queries.in_time_order(part.wanted)
            async with aclosing(self._find(said, index, part.order, cut)) as documents:
                async for document in documents:
                    yield document
            return
        newest_first = part.order[0][1] < 0
        async with aclosing(self._rollups.where(part.wanted, newest_first=newest_first)) as places:
            async for spans, _ in places:
                for start in range(0, len(spans), SPANS_AT_ONCE):
                    narrowed = event_queries.within(
                        part.wanted, spans[start : start + SPANS_AT_ONCE]
                    )
                    said, index = event_queries.in_time_order(narrowed)
                    async with aclosing(self._find(said, index, part.order, cut)) as documents:
                        async for document in documents:
                            yield document
                    if not cut.left:
                        return

    async def _by_attempts(
        self, match: Document, part: event_queries.Part, after: Position | None, cut: _Cut
    ) -> AsyncGenerator[Document]:
        """Yield events in order of their attempts; `match` is what `part` wants before `after`.

        Few are sorted once they are found. Of many, those that had several attempts are in an index
        in order, and others are in order of time.
        """
        if not event_queries.is_kept(match):
            async for document in self._sorted(part, [event_queries.span_of(match)], cut):
                yield document
            return
        spans, known = await self._where_few(match)
        if known <= FEW:
            async for document in self._sorted(part, spans, cut):
                yield document
            return
        for each in event_queries.by_attempts(match, part.order, after):
            if each.order == part.order:
                spans, known = await self._where_few(each.wanted)
                if known <= FEW:
                    read = self._sorted(each, spans, cut)
                else:
                    read = self._find(each.wanted, indexes.ATTEMPTS_INDEX, each.order, cut)
            else:
                read = self._by_time(each, cut)
            async with aclosing(read) as documents:
                async for document in documents:
                    yield document
            if not cut.left:
                return

    async def _where_few(self, wanted: Document) -> tuple[list[Span], int]:
        """Return where the wanted are, and how many are known; no more once these are not few."""
        spans: list[Span] = []
        known = 0
        async with aclosing(self._rollups.where(wanted, newest_first=True)) as places:
            async for some, number in places:
                spans += some
                known += number
                if known > FEW:
                    break
        return spans, known

    async def _find(
        self, wanted: Document, index: str | None, order: event_queries.Order, cut: _Cut
    ) -> AsyncGenerator[Document]:
        """Yield events in an order that the index has; what is skipped is taken off the cut."""
        found = self._events.find(
            wanted, cut.fields, batch_size=cut.batch, max_time_ms=SEARCH_LIMIT_MS, hint=index
        )
        skip, cut.skip = cut.skip, 0
        none = True
        async with aclosing(_each(found.sort(order).skip(skip).limit(cut.left))) as documents:
            async for document in documents:
                none = False
                cut.left -= 1
                yield document
        if none and skip:
            # All of these were skipped, and the rest of the skip falls on those that follow.
            hinted: dict[str, Any] = {} if index is None else {"hint": index}
            cut.skip = skip - await self._events.count_documents(
                wanted, limit=skip, maxTimeMS=SEARCH_LIMIT_MS, **hinted
            )

    async def _sorted(
        self, part: event_queries.Part, spans: list[Span], cut: _Cut
    ) -> AsyncGenerator[Document]:
        """Yield events in an order that no index has, of places sorted from what an index holds.

        Those that leave their places before they are read leave no gap, and end nothing too soon.
        """
        while True:
            found: list[Document] = []
            for start in range(0, len(spans), SPANS_AT_ONCE):
                narrowed = event_queries.within(part.wanted, spans[start : start + SPANS_AT_ONCE])
                places = event_queries.places(narrowed, part.order, cut.skip + cut.left)
                read = self._events.aggregate(
                    places, hint=event_queries.hint(narrowed), maxTimeMS=SEARCH_LIMIT_MS
                )
                found += await read.to_list(None)
            asked = cut.left
            chosen = _in_order(found, part.order)[cut.skip : cut.skip + asked]
            cut.skip = max(cut.skip - len(found), 0)
            for start in range(0, len(chosen), cut.batch):
                for document in await self._at(chosen[start : start + cut.batch], part, cut):
                    cut.left -= 1
                    yield document
            if len(chosen) < asked or not cut.left:
                return
            last = event_queries.position_of(chosen[-1])
            part = event_queries.Part(
                event_queries.after(part.wanted, part.order, last), part.order
            )

    async def _at(
        self, places: list[Document], part: event_queries.Part, cut: _Cut
    ) -> list[Document]:
        """Return the events of a part that are at these places, in order as they are by now.

        So none that was attempted meanwhile is taken for the place up to which all were read; one
        that follows the last place now will be found from there on.
        """
        wanted = event_queries.narrowed(
            part.wanted, {"_id": {"$in": [each["_id"] for each in places]}}
        )
        found = self._events.find(wanted, cut.fields, max_time_ms=SEARCH_LIMIT_MS, hint="_id_")
        last = places[-1]
        ordered = _in_order([*await found.to_list(None), last], part.order)
        return ordered[: next(at for at, each in enumerate(ordered) if each is last)]

    async def export(
        self, match: Document, *, sort: str, include_payload: bool
    ) -> AsyncGenerator[list[Document], None]:
        """Yield all matching events, a page at a time; memory stays flat.

        Each page is a query of its own, so an export can take as long as it needs.
        """
        after: Position | None = None
        more = True

        async def read() -> tuple[list[Document], bool]:
            return await self.page(
                match,
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

    async def estimated_count(self) -> int:
        """Return about how many events there are, at once."""
        return await self._try_for(READ_BUDGET_S, self._events.estimated_document_count)

    async def scan(self, *, payloads: bool) -> AsyncIterator[list[Document]]:
        """Yield all events, a page at a time, in the order of their ids; memory stays flat.

        Each page is a query of its own, so a scan can take as long as it needs. It ends once it
        holds `PAGE_BYTES` of payload.
        """
        last = ""

        async def read() -> list[Document]:
            fields = None if payloads else {"payload": 0}
            batch = PAYLOADS_AT_ONCE if payloads else SCAN_PAGE
            found = self._events.find({"_id": {"$gt": last}}, fields, batch_size=batch)
            page: list[Document] = []
            size = 0
            async with aclosing(_each(found.sort("_id", 1).limit(SCAN_PAGE))) as documents:
                async for document in documents:
                    page.append(document)
                    size += len(document.get("payload", b""))
                    if size >= PAGE_BYTES:
                        break
            return page

        while page := await self._try_for(READ_BUDGET_S, read):
            yield page
            last = page[-1]["_id"]

    async def total(self, match: Document) -> int:
        """Count the matching events."""
        return await self._search(
            lambda: self._events.count_documents(
                match, hint=event_queries.hint(match), maxTimeMS=SEARCH_LIMIT_MS
            )
        )

    async def counts(self, match: Document) -> Document:
        """Count matching events: `by_status`, `by_event_type`, `histogram`, each of `{_id, count}`.

        All from one reading, so they agree. Types are the commonest, at most `MAX_EVENT_TYPES`.
        """
        found = self._events.aggregate(
            event_queries.counts(match), hint=event_queries.hint(match), maxTimeMS=SEARCH_LIMIT_MS
        )
        [counts] = await self._search(lambda: found.to_list(None))
        return counts

    async def outcomes(
        self, match: Document, unit: str, bin_size: int
    ) -> list[tuple[datetime, str, int]]:
        """Count matching events by time and status: `(start of the bin, status, count)`.

        Given up after `OUTCOMES_TIMEOUT_MS`: a page that somebody waits for goes without.
        """
        found = self._events.aggregate(
            event_queries.outcomes(match, unit, bin_size),
            hint=event_queries.hint(match),
            maxTimeMS=OUTCOMES_TIMEOUT_MS,
        )
        counted = await self._search(lambda: found.to_list(None))
        return [(each["_id"]["at"], each["_id"]["status"], each["count"]) for each in counted]

    async def oldest(self) -> datetime | None:
        """Return when the first event that is still here was received; None if there is none."""
        found = await self._try_for(
            0,
            lambda: self._events.find_one(
                event_queries.ANY,
                {"_id": 0, "received_at": 1},
                sort=event_queries.SORTS[event_queries.OLDEST_FIRST],
            ),
        )
        return None if found is None else found["received_at"]


def _in_order(events: list[Document], order: event_queries.Order) -> list[Document]:
    """Return events in an order; what is equal in it stays as it was."""
    for field, direction in reversed(order):
        events = sorted(events, key=itemgetter(field), reverse=direction < 0)
    return events


async def _each(cursor: Any) -> AsyncGenerator[Document, None]:  # noqa: ANN401 - motor's own
    """Yield what a cursor finds, and close it however that ends."""
    try:
        async for document in cursor:
            yield document
    finally:
        await cursor.close()
