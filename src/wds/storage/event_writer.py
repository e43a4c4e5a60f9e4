"""New events into the database: one by one with what else arrives, or many all or none.

Ids are fixed before a write, so a write whose outcome is unknown is simply written again, and an
id that is taken tells a repeat from a contradiction by the payload's hash.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pymongo.errors import BulkWriteError
from pymongo.read_concern import ReadConcern

from wds.domain.deliveries import Status
from wds.domain.errors import StoreUnavailableError
from wds.domain.events import Conflict, NewEvent, Receipt
from wds.storage import lease_queries
from wds.storage.mongo import WRITE_BUDGET_S, duplicates, uptime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from wds.storage.lease_queries import Document
    from wds.storage.mongo import MongoDatabase, Session
    from wds.storage.rollups import Rollups

READ_BUDGET_S = 5.0
"""Seconds that a read is retried where giving up would leave a write's outcome unknown."""
_MILLISECOND = timedelta(milliseconds=1)
"""The least by which two instants in the database differ."""


class EventWriter:
    """The writing of new events; what was written late is told to the kept counts."""

    def __init__(self, mongo: MongoDatabase, rollups: Rollups) -> None:
        """Take the connection, and the counts to tell."""
        self._mongo = mongo
        self._rollups = rollups
        self._try_for = mongo.try_for
        self._events = mongo.queue_db[lease_queries.EVENTS]
        # What decides whether a write took place is read where no failover can undo it.
        self._majority = self._events.with_options(read_concern=ReadConcern("majority"))
        self._under_way: set[datetime] = set()

    async def insert(self, events: Sequence[NewEvent]) -> list[Receipt | Conflict]:
        """Store `events`, one result for each in order, majority-committed and journaled.

        Ids are fixed by the caller, so a write of unknown outcome is simply written again.

        Raises:
            StoreUnavailableError: no confirmation in time. Some may have been stored; sent
                again, those with an idempotency key are recognised.
        """
        async with self._instant() as now:
            return await self._insert(events, now)

    async def _insert(self, events: Sequence[NewEvent], now: datetime) -> list[Receipt | Conflict]:
        began = uptime()
        documents = [lease_queries.event_document(event, now) for event in events]
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
                mine = now if tries > 1 and first[event.id] == index else None
                results[index] = _verdict(event, stored[event.id], mine)
        return results

    async def insert_all(self, events: Sequence[NewEvent]) -> list[Receipt | Conflict]:
        """Store all of `events` or, if one of them is a `Conflict`, none.

        In one transaction, the only place that needs one. Events that are stored already are
        left out of it; two of `events` under one id must be equal.

        Raises:
            StoreUnavailableError: no confirmation in time; either all were stored or none.
        """
        async with self._instant() as now:
            return await self._insert_all(events, now)

    async def _insert_all(
        self, events: Sequence[NewEvent], now: datetime
    ) -> list[Receipt | Conflict]:
        began = uptime()
        wanted = {event.id: event for event in events}
        stored: dict[str, Document] = {}
        tries = 0

        async def write() -> None:
            nonlocal tries
            tries += 1
            while not any(_contradicts(wanted[event_id], stored[event_id]) for event_id in stored):
                new = [event for event in wanted.values() if event.id not in stored]
                documents = [lease_queries.event_document(event, now) for event in new]
                if not documents or await self._insert_in_transaction(documents):
                    return
                found = await self._read_committed([event.id for event in new])
                if not found:
                    raise StoreUnavailableError  # not yet on a majority
                stored.update(found)

        await self._try_for(WRITE_BUDGET_S, write)
        await self._rollups.inserted(now, uptime() - began)
        results: list[Receipt | Conflict] = []
        met: set[str] = set()
        for event in events:
            if event.id in stored:
                mine = now if tries > 1 and event.id not in met else None
                results.append(_verdict(event, stored[event.id], mine))
            else:
                results.append(Receipt(event.id, Status.RECEIVED, event.id in met))
            met.add(event.id)
        return results

    @asynccontextmanager
    async def _instant(self) -> AsyncIterator[datetime]:
        """Give the database's time, to no other insert of this process while the block lasts.

        An insert that is repeated knows by it which documents are its own. Where another has it,
        an earlier one is as good: never later than it is.
        """
        instant = await self._mongo.now()
        while instant in self._under_way:
            instant -= _MILLISECOND
        self._under_way.add(instant)
        try:
            yield instant
        finally:
            self._under_way.discard(instant)

    async def _insert_in_transaction(self, documents: list[Document]) -> bool:
        """Insert all or none; False if one of them is there already."""

        async def insert(session: Session) -> None:
            await self._events.insert_many(documents, session=session)

        try:
            await self._mongo.in_transaction(insert)
        except BulkWriteError as error:
            return not duplicates(error)
        return True

    async def _committed(self, ids: set[str]) -> dict[str, Document]:
        """Read documents that exist on the primary, once a majority has them.

        A repeat is acknowledged too, so the first write must be durable by then.
        """

        async def read() -> dict[str, Document]:
            found = await self._read_committed(list(ids))
            if len(found) < len(ids):
                raise StoreUnavailableError
            return found

        return await self._try_for(READ_BUDGET_S, read)

    async def _read_committed(self, ids: list[str]) -> dict[str, Document]:
        """Read what a majority has of these documents, without their payloads."""
        fields = {"payload_sha256": 1, "status": 1, "received_at": 1}
        found = await self._majority.find({"_id": {"$in": ids}}, fields).to_list(None)
        return {document["_id"]: document for document in found}


def _contradicts(event: NewEvent, stored: Document) -> bool:
    return bool(stored["payload_sha256"] != event.payload_sha256)


def _verdict(event: NewEvent, stored: Document, mine: datetime | None) -> Receipt | Conflict:
    """Judge an event whose id is taken; `mine` is when this process may have written it itself."""
    if _contradicts(event, stored):
        return Conflict(event.id, Status(stored["status"]))
    return Receipt(event.id, Status(stored["status"]), stored["received_at"] != mine)
