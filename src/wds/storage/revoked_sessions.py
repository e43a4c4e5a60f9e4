"""Sessions that were ended before their time, by whoever logged out; known to every replica.

A session is judged by its signature and needs nothing stored, so that somebody logged out must be
written down: a digest of the session, from which it cannot be made again, until it would have ended
by itself. Where MongoDB does not answer nobody can tell, and a session counts as ended: there is
nothing in the console or the API that it could show without MongoDB.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from wds.storage import indexes, lease_queries
from wds.storage.mongo import FOREVER, WRITE_BUDGET_S

if TYPE_CHECKING:
    from wds.storage.mongo import MongoDatabase

KEPT_LONGER = timedelta(days=1)
"""Longer than any two clocks differ: a replica whose clock is slow takes a session for longer."""


class RevokedSessions:
    """One process's access to them. What MongoDB does not confirm is `StoreUnavailableError`."""

    def __init__(self, mongo: MongoDatabase) -> None:
        """Take the connection to use."""
        self._try_for = mongo.try_for
        self._ended = mongo.queue_db[lease_queries.LOGOUTS]

    async def open(self) -> None:
        """Make the index by which MongoDB forgets sessions whose time is over anyway."""
        await self._try_for(FOREVER, lambda: self._ended.create_indexes([indexes.LOGOUTS_INDEX]))

    async def end(self, digest: str, expires_at: int) -> None:
        """End the session of this digest, which would last until `expires_at`, seconds since 1970.

        Once this returns no replica accepts it, and no failover brings it back. Safe to repeat.
        """
        until = datetime.fromtimestamp(expires_at, UTC) + KEPT_LONGER
        change = {"$set": {"forget_at": until}}
        await self._try_for(
            WRITE_BUDGET_S, lambda: self._ended.update_one({"_id": digest}, change, upsert=True)
        )

    async def has(self, digest: str) -> bool:
        """Tell whether somebody has ended this session."""
        found = await self._try_for(0, lambda: self._ended.find_one({"_id": digest}))
        return found is not None
