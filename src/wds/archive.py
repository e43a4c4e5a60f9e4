"""Reading events, finished or not, as operators do. Never in the way of the queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wds import queries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from datetime import datetime

    from wds.mongo import Connection
    from wds.queries import Document

READ_BUDGET_S = 5.0
"""Seconds that reading one event is retried on transport errors."""
PAGE_BYTES = 8 * 1024 * 1024
PAYLOADS_AT_ONCE = 8
SCAN_PAGE = 500
SEARCH_TIMEOUT_MS = 10_000
"""A search that takes longer is ended by the server."""


class Archive:
    """Read access to the events of one database. What cannot be read is `StoreUnavailableError`."""

    def __init__(self, mongo: Connection) -> None:
        """Take the connection to read over."""
        self._events = mongo.db[queries.EVENTS]
        self._try_for = mongo.try_for

    async def get(self, event_id: str) -> Document | None:
        """Return a whole event, or None."""
        return await self._try_for(READ_BUDGET_S, lambda: self._events.find_one({"_id": event_id}))

    async def page(
        self,
        match: Document,
        *,
        skip: int,
        limit: int,
        after: tuple[datetime, str] | None,
        include_payload: bool,
    ) -> tuple[list[Document], bool]:
        """Return matching events, newest first, from `skip` on or from a cursor position.

        At most `limit` of them and no more once they hold `PAGE_BYTES` of payload; True with
        them if there are others after.
        """
        wanted = match if after is None else queries.after(match, *after)
        found = self._events.find(
            wanted,
            None if include_payload else {"payload": 0},
            batch_size=PAYLOADS_AT_ONCE if include_payload else limit + 1,
            max_time_ms=SEARCH_TIMEOUT_MS,
        )
        ordered = found.sort(queries.PAGE_ORDER).skip(skip).limit(limit + 1)

        async def read() -> tuple[list[Document], bool]:
            page: list[Document] = []
            size = 0
            async for document in ordered:
                if len(page) == limit or size >= PAGE_BYTES:
                    await ordered.close()
                    return page, True
                page.append(document)
                size += len(document.get("payload", b""))
            return page, False

        return await self._try_for(0, read)

    async def estimated_count(self) -> int:
        """Return about how many events there are, at once."""
        return await self._try_for(READ_BUDGET_S, self._events.estimated_document_count)

    async def scan(self, *, payloads: bool) -> AsyncIterator[list[Document]]:
        """Yield all events, a page at a time, in the order of their ids; memory stays flat.

        Each page is a query of its own, so a scan can take as long as it needs.
        """
        fields = None if payloads else {"payload": 0}
        last = ""
        while page := await self._try_for(READ_BUDGET_S, self._page_after(last, fields)):
            yield page
            last = page[-1]["_id"]

    def _page_after(
        self, event_id: str, fields: Document | None
    ) -> Callable[[], Awaitable[list[Document]]]:
        found = {"_id": {"$gt": event_id}}
        return lambda: (
            self._events.find(found, fields).sort("_id", 1).limit(SCAN_PAGE).to_list(None)
        )
