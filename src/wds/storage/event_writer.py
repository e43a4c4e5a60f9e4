"""Write new events: each by itself, in a group with other requests, or a batch all or none.

The id of an event is fixed before the write. A write of unknown outcome is therefore repeated, and
an id that is taken is either a repeat (same payload hash) or a conflict (another payload).
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, cast

from pymongo.errors import BulkWriteError
from pymongo.read_concern import ReadConcern

from wds.domain.deliveries import Status
from wds.domain.errors import StoreUnavailableError
from wds.domain.events import Conflict, NewEvent, Receipt
from wds.storage.collection_names import EVENTS
from wds.storage.event_documents import STORED_PROJECTION, event_document
from wds.storage.mongo import READ_BUDGET_S, WRITE_BUDGET_S, uptime
from wds.storage.mongo_errors import duplicates

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from pymongo.asynchronous.collection import AsyncCollection

    from wds.storage.event_documents import EventDocument
    from wds.storage.mongo import MongoDatabase, Session
    from wds.storage.rollups import Rollups

_MILLISECOND = timedelta(milliseconds=1)
"""The smallest difference between two instants in the database."""


class EventWriter:
    """Inserts events, and reports the duration of each insert to the rollups."""

    def __init__(self, mongo: MongoDatabase, rollups: Rollups) -> None:
        """Use an open connection; `rollups` invalidates counts that a slow insert made wrong."""
        self._mongo = mongo
        self._rollups = rollups
        self._try_for = mongo.try_for
        self._events = cast("AsyncCollection[EventDocument]", mongo.queue_db[EVENTS])
        # Reads that decide whether a write took place see only what no failover can undo.
        self._majority = self._events.with_options(read_concern=ReadConcern("majority"))
        self._instants_in_use: set[datetime] = set()

    async def insert(self, events: Sequence[NewEvent]) -> list[Receipt | Conflict]:
        """Store `events`, majority-committed and journaled; return one result for each, in order.

        The caller fixes the ids, so a write of unknown outcome is repeated.

        Raises:
            StoreUnavailableError: no confirmation in time. Some events may have been stored. If
                they are sent again, those with an idempotency key are recognised.
        """
        async with self._unused_instant() as now:
            return await self._insert(events, now)

    async def _insert(self, events: Sequence[NewEvent], now: datetime) -> list[Receipt | Conflict]:
        began = uptime()
        documents = [event_document(event, now) for event in events]
        tries = 0

        async def write() -> list[int]:
            nonlocal tries
            tries += 1
            try:
                await self._events.insert_many(documents, ordered=False)
            except BulkWriteError as error:
                return duplicates(error)
            return []

        repeated = await self._try_for(WRITE_BUDGET_S, write)
        await self._rollups.inserted(now, uptime() - began)
        results: list[Receipt | Conflict] = [
            Receipt(event.id, Status.RECEIVED, duplicate=False) for event in events
        ]
        if repeated:
            stored = await self._committed({events[index].id for index in repeated})
            first = {event.id: index for index, event in reversed(list(enumerate(events)))}
            for index in repeated:
                event = events[index]
                # Only a second try can meet a document that the first one wrote.
                own_instant = now if tries > 1 and first[event.id] == index else None
                results[index] = _repeat_or_conflict(event, stored[event.id], own_instant)
        return results

    async def insert_all(self, events: Sequence[NewEvent]) -> list[Receipt | Conflict]:
        """Store all of `events` or, if one of them is a `Conflict`, none.

        One transaction, the only one in wds. Events that are stored already are left out of it. Two
        of `events` with the same id must be equal.

        Raises:
            StoreUnavailableError: no confirmation in time; either all were stored or none.
        """
        async with self._unused_instant() as now:
            return await self._insert_all(events, now)

    async def _insert_all(
        self, events: Sequence[NewEvent], now: datetime
    ) -> list[Receipt | Conflict]:
        began = uptime()
        by_id = {event.id: event for event in events}
        stored: dict[str, EventDocument] = {}
        tries = 0

        async def write() -> None:
            nonlocal tries
            tries += 1
            while not any(_contradicts(by_id[event_id], stored[event_id]) for event_id in stored):
                new = [event for event in by_id.values() if event.id not in stored]
                documents = [event_document(event, now) for event in new]
                if not documents or await self._insert_in_transaction(documents):
                    return
                found = await self._read_committed([event.id for event in new])
                if not found:
                    raise StoreUnavailableError  # not yet on a majority
                stored.update(found)

        await self._try_for(WRITE_BUDGET_S, write)
        await self._rollups.inserted(now, uptime() - began)
        results: list[Receipt | Conflict] = []
        seen: set[str] = set()
        for event in events:
            if event.id in stored:
                own_instant = now if tries > 1 and event.id not in seen else None
                results.append(_repeat_or_conflict(event, stored[event.id], own_instant))
            else:
                results.append(Receipt(event.id, Status.RECEIVED, event.id in seen))
            seen.add(event.id)
        return results

    @asynccontextmanager
    async def _unused_instant(self) -> AsyncIterator[datetime]:
        """Yield an instant of the database's clock that no other insert of this process is using.

        A repeated insert recognises its own documents by it. If the present instant is in use, step
        back 1 ms at a time: it must never lie in the future.
        """
        instant = await self._mongo.now()
        while instant in self._instants_in_use:
            instant -= _MILLISECOND
        self._instants_in_use.add(instant)
        try:
            yield instant
        finally:
            self._instants_in_use.discard(instant)

    async def _insert_in_transaction(self, documents: list[EventDocument]) -> bool:
        """Insert all or none; False if one of the ids is taken."""

        async def insert(session: Session) -> None:
            await self._events.insert_many(documents, session=session)

        try:
            await self._mongo.in_transaction(insert)
        except BulkWriteError as error:
            return not duplicates(error)
        return True

    async def _committed(self, ids: set[str]) -> dict[str, EventDocument]:
        """Read documents that exist on the primary, once a majority has them.

        A repeat is acknowledged as well, so the first write must be durable by then.
        """

        async def read() -> dict[str, EventDocument]:
            found = await self._read_committed(list(ids))
            if len(found) < len(ids):
                raise StoreUnavailableError
            return found

        return await self._try_for(READ_BUDGET_S, read)

    async def _read_committed(self, ids: list[str]) -> dict[str, EventDocument]:
        """Return those of these documents that are on a majority, by id, without their payloads."""
        found = await self._majority.find({"_id": {"$in": ids}}, STORED_PROJECTION).to_list(None)
        return {document["_id"]: document for document in found}


def _contradicts(event: NewEvent, stored: EventDocument) -> bool:
    return stored["payload_sha256"] != event.payload_sha256


def _repeat_or_conflict(
    event: NewEvent, stored: EventDocument, own_instant: datetime | None
) -> Receipt | Conflict:
    """Return the result for an event whose id is taken.

    `own_instant` is the `received_at` of a document that an earlier try of the same insert wrote:
    that document is no duplicate.
    """
    if _contradicts(event, stored):
        return Conflict(event.id, Status(stored["status"]))
    return Receipt(event.id, Status(stored["status"]), stored["received_at"] != own_instant)
