"""Everything that one process uses of MongoDB: opened together, used in parts, closed together.

Only the functions that compose a process hold a `Store`. They pass on the part that each class
needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wds.storage import retention
from wds.storage.bulk_actions import BulkActions
from wds.storage.change_stream import ChangeStream
from wds.storage.collection_names import EVENTS
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

    from wds.domain.lease_queue import LeaseQueue


class Store:
    """Create it, `open` it, use its parts, `close` it."""

    def __init__(self, url: str, database: str) -> None:
        """Prepare the clients. Nothing is sent until `open`.

        Raises:
            StartError: the URL is malformed. The message omits it, as it may hold a password.
        """
        self._mongo = MongoDatabase(url, database)
        self.rollups = Rollups(self._mongo)
        self.change_stream = ChangeStream(self._mongo)
        self.queue: LeaseQueue = MongoLeaseQueue(self._mongo, self.change_stream)
        self.writer = EventWriter(self._mongo, self.rollups)
        self.reader = EventReader(self._mongo, self.rollups)
        self.bulk_actions = BulkActions(self._mongo, self.rollups)
        self.replicas = Replicas(self._mongo)
        self.revoked_sessions = RevokedSessions(self._mongo)

    async def open(self) -> None:
        """Wait until the server answers, check what kind it is, and make the indexes.

        Raises:
            StandaloneRefusedError: the server is not a member of a replica set.
            StartError: the server refuses this client.
        """
        await self._mongo.open()
        events = self._mongo.queue_db[EVENTS]
        await self._mongo.try_for(FOREVER, lambda: make_indexes(events))
        await self.bulk_actions.open()
        await self.revoked_sessions.open()

    async def keep_for(self, days: int | None) -> None:
        """Set the retention period of finished events, in days; None keeps them for ever."""
        after_s = None if days is None else days * retention.DAY_S
        self.rollups.keep_for(after_s)
        await retention.apply(self._mongo, after_s, self.rollups.forget)

    async def close(self) -> None:
        """Close all connections."""
        await self.change_stream.close()
        await self._mongo.close()

    async def ping(self) -> None:
        """Return if a primary answers.

        Raises:
            StoreUnavailableError: no primary answers.
        """
        await self._mongo.try_for(0, self._mongo.hello)

    async def now(self) -> datetime:
        """Return the database's time in UTC. Between readings it follows this machine's clock."""
        return await self._mongo.now()
