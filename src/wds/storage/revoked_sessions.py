"""Console sessions that a logout ended early, known to every replica.

A session is valid by its signature, so nothing is stored for it until somebody logs out. Then a
digest of the session is stored, from which the session cannot be made again, until it would have
expired. If MongoDB does not answer, a session counts as ended: without MongoDB there is nothing to
show anyway.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from wds.storage.collection_names import LOGOUTS
from wds.storage.indexes import LOGOUTS_INDEX
from wds.storage.mongo import FOREVER, WRITE_BUDGET_S

if TYPE_CHECKING:
    from wds.storage.mongo import MongoDatabase

KEPT_LONGER = timedelta(days=1)
"""Time for which a digest outlives its session. Longer than any two clocks differ: a replica with a
slow clock accepts a session for longer."""


class RevokedSessions:
    """The ended sessions. A failure to read or write is `StoreUnavailableError`."""

    def __init__(self, mongo: MongoDatabase) -> None:
        """Use an open connection."""
        self._try_for = mongo.try_for
        self._revoked = mongo.queue_db[LOGOUTS]

    async def open(self) -> None:
        """Make the TTL index that deletes digests of sessions that have expired anyway."""
        await self._try_for(FOREVER, lambda: self._revoked.create_indexes([LOGOUTS_INDEX]))

    async def end(self, digest: str, expires_at: int) -> None:
        """End the session with this digest, which expires at `expires_at`, seconds since 1970.

        After this returns no replica accepts the session, and no failover undoes that. Safe to
        repeat.
        """
        until = datetime.fromtimestamp(expires_at, UTC) + KEPT_LONGER
        change = {"$set": {"forget_at": until}}
        await self._try_for(
            WRITE_BUDGET_S, lambda: self._revoked.update_one({"_id": digest}, change, upsert=True)
        )

    async def has(self, digest: str) -> bool:
        """Tell whether the session with this digest was ended."""
        found = await self._try_for(0, lambda: self._revoked.find_one({"_id": digest}))
        return found is not None
