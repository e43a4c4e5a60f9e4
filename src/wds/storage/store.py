"""What one process uses of MongoDB: opened together, handed out in parts, closed together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wds.storage import lease_queries, retention
from wds.storage.bulk_actions import BulkActions
from wds.storage.change_stream import ChangeStream
from wds.storage.event_reader import EventReader
from wds.storage.event_writer import EventWriter
from wds.storage.indexes import make_indexes
from wds.storage.lease_queue import MongoLeaseQueue
from wds.storage.mongo import FOREVER, MongoDatabase
from wds.storage.replicas import Replicas
from wds.storage.revoked_sessions import RevokedSessions
from wds.storage.rollups import Rollups

if TYPE_CHECKING:
    from datetime import datetime


class Store:
    """Create, `open`, hand out the parts, `close`."""

    def __init__(self, url: str, database: str) -> None:
        """Prepare the clients; nothing is sent until `open`.

        Raises:
            StartError: the URL is malformed. It is not repeated, it may hold a password.
        """
        self._mongo = MongoDatabase(url, database)
        self.rollups = Rollups(self._mongo)
        self.queue = MongoLeaseQueue(self._mongo)
        self.change_stream = ChangeStream(self._mongo)
        self.writer = EventWriter(self._mongo, self.rollups)
        self.reader = EventReader(self._mongo, self.rollups)
        self.bulk_actions = BulkActions(self._mongo, self.rollups)
        self.replicas = Replicas(self._mongo)
        self.revoked_sessions = RevokedSessions(self._mongo)

    async def open(self) -> None:
        """Check what kind of server this is and make the indexes, once it answers.

        Raises:
            StandaloneRefusedError: it is no replica set.
            StartError: it refuses this client.
        """
        await self._mongo.open()
        events = self._mongo.queue_db[lease_queries.EVENTS]
        await self._mongo.try_for(FOREVER, lambda: make_indexes(events))
        await self.bulk_actions.open()
        await self.revoked_sessions.open()

    async def keep_for(self, days: int | None) -> None:
        """Have events deleted so many days after they finished; None keeps them for ever."""
        after_s = None if days is None else days * retention.DAY_S
        self.rollups.keep_for(after_s)
        await retention.apply(self._mongo, after_s, self.rollups.forget)

    async def close(self) -> None:
        """Drop all connections."""
        await self.change_stream.close()
        await self._mongo.close()

    async def ping(self) -> None:
        """Return if a primary answers.

        Raises:
            StoreUnavailableError: none does.
        """
        await self._mongo.try_for(0, self._mongo.hello)

    async def now(self) -> datetime:
        """Return the database's time, at most a few seconds of drift from it; UTC."""
        return await self._mongo.now()
