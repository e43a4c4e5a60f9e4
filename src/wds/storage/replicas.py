"""The reports of all replicas: one document with their heartbeats and totals.

Totals are stored here so that a scrape of the metrics never counts events. A replica that dies
loses the counts since its last heartbeat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pymongo import ReturnDocument

from wds.storage.collection_names import FLEET

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wds.storage.mongo import Document, Expression, MongoDatabase, Pipeline

FLEET_ID = "fleet"
"""The id of the only document."""
FORGET_REPLICA_S = 3600.0
"""Seconds without a heartbeat after which a replica is removed and its totals are retired."""


class Replicas:
    """The heartbeats of all replicas. A failure to read or write is `StoreUnavailableError`."""

    def __init__(self, mongo: MongoDatabase) -> None:
        """Use an open connection."""
        self._try_for = mongo.try_for
        self._fleet = mongo.queue_db[FLEET]
        self._reported: dict[str, dict[str, int]] = {}

    async def report(self, *, owner: str, role: str, totals: dict[str, int]) -> Document:
        """Write the heartbeat of one replica. Totals are absolute, so a repeat is harmless.

        Returns the document as `fleet` does. That saves a read, and an idle process does little
        else than report and poll.
        """
        update = heartbeat(
            {"owner": owner, "role": role, "totals": totals},
            self._reported.get(owner),
            round(FORGET_REPLICA_S * 1000),
        )
        upserted = await self._try_for(
            0,
            lambda: self._fleet.find_one_and_update(
                {"_id": FLEET_ID},
                update,
                upsert=True,
                return_document=ReturnDocument.AFTER,
            ),
        )
        fleet = cast("Document", upserted)
        self._reported[owner] = dict(totals)
        own = next(each for each in fleet["replicas"] if each["owner"] == owner)
        return {**fleet, "now": own["seen_at"]}

    async def fleet(self) -> Document:
        """Return the document of all replicas; empty before the first report.

        `replicas` is a list of `{owner, role, totals, seen_at}`, `retired` the totals of replicas
        that were removed, `now` the database's time.
        """

        async def read() -> list[Document]:
            return await (await self._fleet.aggregate(fleet_now())).to_list(1)

        documents = await self._try_for(0, read)
        return documents[0] if documents else {}


def heartbeat(
    replica: Document,
    last_totals: Mapping[str, int] | None,
    forget_after_ms: int,
) -> Pipeline:
    """Return the update that writes one replica's report and removes replicas long silent.

    The totals of a replica without a heartbeat for `forget_after_ms` are added to `retired`, in the
    same write that removes it. Totals are absolute, so a repeated write changes nothing.

    Args:
        replica: `{owner, role, totals}`.
        last_totals: what this replica reported before, None if this is its first report. If
            another replica removed it meanwhile, these are subtracted from `retired` again.
        forget_after_ms: milliseconds without a heartbeat after which a replica is removed.
    """
    owner = {"$literal": replica["owner"]}
    all_replicas = {"$ifNull": ["$replicas", []]}
    is_silent = {"$lt": ["$$each.seen_at", {"$subtract": ["$$NOW", forget_after_ms]}]}
    is_other = {"$ne": ["$$each.owner", owner]}
    was_removed = {"$not": [{"$in": [owner, {"$ifNull": ["$replicas.owner", []]}]}]}
    own = {"$mergeObjects": [{"$literal": replica}, {"seen_at": "$$NOW"}]}

    def filtered(condition: Expression) -> Expression:
        return {"$filter": {"input": all_replicas, "as": "each", "cond": condition}}

    def retired(name: str) -> Expression:
        removed = filtered({"$and": [is_other, is_silent]})
        totals = {"$map": {"input": removed, "as": "each", "in": f"$$each.totals.{name}"}}
        return {
            "$add": [
                {"$ifNull": [f"$retired.{name}", 0]},
                {"$cond": [was_removed, -(last_totals or {}).get(name, 0), 0]},
                {"$sum": totals},
            ]
        }

    others = filtered({"$and": [is_other, {"$not": [is_silent]}]})
    return [
        {
            "$set": {
                "retired": {name: retired(name) for name in replica["totals"]},
                "replicas": {"$concatArrays": [others, [own]]},
            }
        }
    ]


def fleet_now() -> Pipeline:
    """Return the pipeline that reads the document with the database's time, to judge `seen_at`."""
    return [{"$match": {"_id": FLEET_ID}}, {"$set": {"now": "$$NOW"}}]
