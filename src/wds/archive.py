"""Reading events, finished or not, as operators do. Never in the way of the queue."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from wds import filters, queries
from wds.mongo import SEARCH_LIMIT_MS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
    from datetime import datetime

    from wds.filters import Position
    from wds.mongo import Connection
    from wds.queries import Document

READ_BUDGET_S = 5.0
"""Seconds that reading one event is retried on transport errors."""
EXPORT_BUDGET_S = 30.0
"""Seconds that a page of an export is retried before the export ends early."""
PAGE_BYTES = 8 * 1024 * 1024
PAYLOADS_AT_ONCE = 8
SCAN_PAGE = 500
OUTCOMES_TIMEOUT_MS = 4_000


class Archive:
    """Read access to the events of one database. What cannot be read is `StoreUnavailableError`.

    Whatever reads more than one event may also be a `SearchTooSlowError`.
    """

    def __init__(self, mongo: Connection) -> None:
        """Take the connection to read over."""
        self._events = mongo.db[queries.EVENTS]
        self._try_for = mongo.try_for
        self._search = mongo.search

    async def get(self, event_id: str) -> Document | None:
        """Return a whole event, or None."""
        return await self._try_for(READ_BUDGET_S, lambda: self._events.find_one({"_id": event_id}))

    async def page(
        self,
        match: Document,
        *,
        sort: str = filters.NEWEST_FIRST,
        skip: int,
        limit: int,
        after: Position | None,
        include_payload: bool,
    ) -> tuple[list[Document], bool]:
        """Return matching events in the order `sort`, from `skip` on or from a cursor position.

        At most `limit` of them and no more once they hold `PAGE_BYTES` of payload; True with
        them if there are others after.
        """
        order = filters.SORTS[sort]
        wanted = match if after is None else filters.after(match, order, after)
        fields = None if include_payload else {"payload": 0}
        batch = PAYLOADS_AT_ONCE if include_payload else limit + 1
        if order[0][0] == "received_at":
            said, index = filters.in_time_order(wanted)
            found = self._events.find(
                said, fields, batch_size=batch, max_time_ms=SEARCH_LIMIT_MS, hint=index
            )
            documents = _each(found.sort(order).skip(skip).limit(limit + 1))
        else:
            documents = self._at(self._places(wanted, order, skip, limit + 1), fields, batch)

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

    async def _places(
        self, wanted: Document, order: filters.Order, skip: int, limit: int
    ) -> list[str]:
        """Return the ids of a page that no index has in order, sorted from what the index holds."""
        ids: list[str] = []
        for among in filters.in_turn(wanted, order):
            places = filters.page_ids(among, order, skip, limit)
            found = self._events.aggregate(
                places, hint=filters.hint(among), maxTimeMS=SEARCH_LIMIT_MS
            )
            ids = [each["_id"] for each in await found.to_list(None)]
            if len(ids) == limit:
                break
        return ids

    async def _at(
        self, places: Awaitable[list[str]], fields: Document | None, batch: int
    ) -> AsyncGenerator[Document, None]:
        """Yield the events of these ids, in their order."""
        ids = await places
        for start in range(0, len(ids), batch):
            some = ids[start : start + batch]
            read = await self._events.find({"_id": {"$in": some}}, fields).to_list(None)
            by_id = {document["_id"]: document for document in read}
            for event_id in some:
                if event_id in by_id:
                    yield by_id[event_id]

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
                after = filters.position_of(page[-1])

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

    async def count(self, match: Document) -> int:
        """Count the matching events."""
        return await self._search(
            lambda: self._events.count_documents(
                match, hint=filters.hint(match), maxTimeMS=SEARCH_LIMIT_MS
            )
        )

    async def counts(self, match: Document) -> Document:
        """Count matching events: `by_status`, `by_event_type`, `histogram`, each of `{_id, count}`.

        All from one reading, so they agree. Types are the commonest, at most `MAX_EVENT_TYPES`.
        """
        found = self._events.aggregate(
            filters.counts(match), hint=filters.hint(match), maxTimeMS=SEARCH_LIMIT_MS
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
            filters.outcomes(match, unit, bin_size),
            hint=filters.hint(match),
            maxTimeMS=OUTCOMES_TIMEOUT_MS,
        )
        counted = await self._search(lambda: found.to_list(None))
        return [(each["_id"]["at"], each["_id"]["status"], each["count"]) for each in counted]

    async def oldest(self) -> datetime | None:
        """Return when the first event that is still here was received; None if there is none."""
        found = await self._try_for(
            0,
            lambda: self._events.find_one(
                filters.ANY,
                {"_id": 0, "received_at": 1},
                sort=filters.SORTS[filters.OLDEST_FIRST],
            ),
        )
        return None if found is None else found["received_at"]


async def _each(cursor: Any) -> AsyncGenerator[Document, None]:  # noqa: ANN401 - motor's own
    """Yield what a cursor finds, and close it however that ends."""
    try:
        async for document in cursor:
            yield document
    finally:
        await cursor.close()
