"""What there is to watch in the database: the backlog, and the document the fleet reports to."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, cast

from pymongo import ReturnDocument

from wds.storage import lease_queries

if TYPE_CHECKING:
    from datetime import timedelta

    from wds.storage.lease_queries import Document
    from wds.storage.mongo import MongoDatabase

BACKLOG_CAP = 100_000
"""The due gauge counts no further, so that a huge backlog does not make its own metric slow."""
MANY = 10_000
COUNT_MANY_EVERY_S = 10.0
"""`MANY` and more are counted this seldom: every replica counts, and reads a key for each."""
FORGET_REPLICA_S = 3600.0


@dataclass(frozen=True, slots=True)
class Backlog:
    """Due events now (`BACKLOG_CAP` means that or more) and the age of the oldest, seconds."""

    due: int
    oldest_due_s: float


class Replicas:
    """One process's part in it. What MongoDB does not confirm is `StoreUnavailableError`."""

    def __init__(self, mongo: MongoDatabase) -> None:
        """Take the connection to use."""
        self._mongo = mongo
        self._try_for = mongo.try_for
        self._events = mongo.queue_db[lease_queries.EVENTS]
        self._fleet = mongo.queue_db[lease_queries.FLEET]
        self._reported: dict[str, dict[str, int]] = {}
        self._many: dict[str, tuple[int, float]] = {}

    async def backlog(self, destination: str) -> Backlog:
        """Measure what is due now, by the database's clock.

        From `MANY` on `due` may be `COUNT_MANY_EVERY_S` old.
        """
        now = await self._mongo.now()
        due = lease_queries.due_by(destination, now)
        oldest = await self._try_for(
            0,
            lambda: self._events.find_one(
                due, {"_id": 0, "next_attempt_at": 1}, sort=lease_queries.DUE_ORDER
            ),
        )
        if oldest is None:
            return Backlog(0, 0.0)
        count, counted_at = self._many.get(destination, (0, 0.0))
        if count < MANY or monotonic() - counted_at >= COUNT_MANY_EVERY_S:
            count = await self._try_for(
                0, lambda: self._events.count_documents(due, limit=BACKLOG_CAP, hint="claim")
            )
            self._many[destination] = count, monotonic()
        age: timedelta = now - oldest["next_attempt_at"]
        return Backlog(count, max(age.total_seconds(), 0.0))

    async def report(self, *, owner: str, role: str, totals: dict[str, int]) -> Document:
        """Write this replica's heartbeat; totals are absolute, so repeating it is harmless.

        Returns what `fleet` would: an idle process does little else than this and looking.
        """
        update = lease_queries.heartbeat(
            {"owner": owner, "role": role, "totals": totals},
            self._reported.get(owner),
            round(FORGET_REPLICA_S * 1000),
        )
        upserted = await self._try_for(
            0,
            lambda: self._fleet.find_one_and_update(
                {"_id": lease_queries.FLEET},
                update,
                upsert=True,
                return_document=ReturnDocument.AFTER,
            ),
        )
        fleet = cast("Document", upserted)
        self._reported[owner] = dict(totals)
        mine = next(each for each in fleet["replicas"] if each["owner"] == owner)
        return {**fleet, "now": mine["seen_at"]}

    async def fleet(self) -> Document:
        """Return the fleet document and the database's time as `now`; empty before any report."""

        async def read() -> list[Document]:
            return await (await self._fleet.aggregate(lease_queries.fleet_now())).to_list(1)

        documents = await self._try_for(0, read)
        return documents[0] if documents else {}
