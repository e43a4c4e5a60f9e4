"""The durable queue: insert, claim, settle.

Trust: every write is acknowledged by a majority and journaled, so what this module returns
survives any one node. A lost connection leaves a write's outcome unknown; each method says
how it finds out. Retries of deliveries are not this module's: they are due times in the
documents.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from typing import TYPE_CHECKING, NamedTuple

import structlog
from msgspec.structs import replace
from pymongo import ReturnDocument
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern

from wds.domain.deliveries import Claim, Claimed, Outcome, Settlement, Status
from wds.domain.errors import StoreUnavailableError
from wds.storage import lease_queries
from wds.storage.event_writer import READ_BUDGET_S
from wds.storage.mongo import (
    MongoDatabase,
    heeded,
    transient,
    uptime,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymongo import UpdateMany, UpdateOne

    from wds.storage.lease_queries import Document

log = structlog.get_logger(__name__)

READ_BACK_TRIES = 10
READ_BACK_WAIT_S = 0.05
PEEK_FACTOR = 4
"""Due ids looked at for each one leased: replicas that sample do not race for the same head."""
PEEK_LEAST = 16
PEEKS_MOST = 3
"""How often a claim of one event looks again where others took, or it buried, all it saw."""


class _Got(NamedTuple):
    """Documents that a claim leased; how many it buried; those of them it knows; saw it any due?"""

    leased: list[Document]
    buried: int
    gone: list[Document]
    saw_some: bool = True


class MongoLeaseQueue:
    """The lease queue in the collection of events."""

    def __init__(self, mongo: MongoDatabase) -> None:
        """Use an open connection."""
        self._mongo = mongo
        self._try_for = mongo.try_for
        self._events = mongo.queue_db[lease_queries.EVENTS]
        # What decides whether a write took place is read where no failover can undo it.
        self._majority = self._events.with_options(read_concern=ReadConcern("majority"))

    async def claim(
        self, destination: str, limit: int, *, owner: str, lease_s: float, max_attempts: int
    ) -> Claimed:
        """Lease up to `limit` due events of `destination`; none due gives an empty result.

        At most one live lease exists per event, by the server's own serialisation of writes
        to one document. If this process never learns of a lease it was given, the lease
        expires and the event is found again.

        Raises:
            StoreUnavailableError: the database did not answer.
        """
        token = secrets.token_hex(8)
        update = lease_queries.claim(token, owner, round(lease_s * 1000), max_attempts)
        trusted_until = uptime() + lease_s
        if limit == 1:
            got = await self._claim_one(destination, update)
        else:
            got = await self._claim_many(destination, limit, token, update)
        held_since = time.monotonic()
        cancelled = [each["_id"] for each in got.gone if each["buried"]["cancelled"]]
        return Claimed(
            [_claim(document, token, held_since, trusted_until) for document in got.leased],
            sum("recovered" in document["lease"] for document in got.leased),
            got.buried - len(cancelled),
            [each["_id"] for each in got.gone if not each["buried"]["cancelled"]],
            cancelled,
            sum(each["buried"]["lost"] for each in got.gone),
            outrun=got.saw_some and not got.leased and not got.buried,
        )

    async def _peek(self, destination: str, limit: int) -> list[str]:
        """Return the ids of up to `limit` events that are due, in due order.

        A few that become due in the next milliseconds may be among them.
        """
        command = lease_queries.peek(destination, await self._mongo.now_at_latest(), limit)
        # Not by a cursor, which costs a fifth more: an idle dispatcher does little else.
        found = await self._try_for(0, lambda: self._mongo.queue_db.command(command))
        return [document["_id"] for document in found["cursor"]["firstBatch"]]

    async def _claim_one(self, destination: str, update: list[Document]) -> _Got:
        """Lease the first due event that no other replica takes at this moment.

        Not for ever: after a failover to a slower clock, what looks due may not be for a while.
        """
        gone: list[Document] = []
        for tries in range(PEEKS_MOST):
            ids = await self._peek(destination, PEEK_LEAST)
            if not ids:
                return _Got([], len(gone), gone, saw_some=tries > 0)
            got = await self._lease_first(ids, destination, update)
            gone += got.gone
            if got.leased:
                return got._replace(buried=len(gone), gone=gone)
        return _Got([], len(gone), gone)

    async def _lease_first(self, ids: list[str], destination: str, update: list[Document]) -> _Got:
        """Lease the first of `ids` that is still due, if one is; also tell which were buried."""
        gone: list[Document] = []
        for event_id in ids:
            found = await self._lease(event_id, destination, update)
            if found is None:
                continue
            if "lease" in found:
                return _Got([found], len(gone), gone)
            gone.append(found)
        return _Got([], len(gone), gone)

    async def _lease(
        self, event_id: str, destination: str, update: list[Document]
    ) -> Document | None:
        """Lease, or bury, one event if it is still due; None if it is not."""
        return await self._try_for(
            0,
            lambda: self._events.find_one_and_update(
                {"_id": event_id, **lease_queries.due(destination)},
                update,
                projection=lease_queries.CLAIM_PROJECTION,
                return_document=ReturnDocument.AFTER,
                hint="_id_",
            ),
        )

    async def _claim_many(
        self, destination: str, limit: int, token: str, update: list[Document]
    ) -> _Got:
        peeked = await self._peek(destination, max(limit * PEEK_FACTOR, PEEK_LEAST))
        if not peeked:
            return _Got([], 0, [], saw_some=False)
        if len(peeked) == 1:  # one round trip instead of two
            return await self._lease_first(peeked, destination, update)
        ids = random.sample(peeked, min(limit, len(peeked)))
        chosen = {"_id": {"$in": ids}, **lease_queries.due(destination)}
        try:
            written = await heeded(lambda: self._events.update_many(chosen, update, hint="_id_"))
        except PyMongoError as error:
            if not transient(error):
                raise
            log.warning("claim_outcome_unknown", error=type(error).__name__, events=len(ids))
            return _Got(await self._claimed_after_all(ids, token), 0, [])
        found = await self._try_for(READ_BUDGET_S, lambda: self._held_by(ids, token))
        buried = max(written.modified_count - len(found), 0)
        return _Got(found, buried, await self._buried(ids, token) if buried else [])

    async def _buried(self, ids: list[str], token: str) -> list[Document]:
        """Tell which of `ids` this claim buried; not worth losing it for."""
        wanted = lease_queries.buried(ids, token)
        try:
            return await self._try_for(
                0, lambda: self._events.find(wanted, {"buried": 1}).to_list(None)
            )
        except StoreUnavailableError:
            return []

    async def _held_by(self, ids: list[str], token: str) -> list[Document]:
        wanted = {"_id": {"$in": ids}, "lease.token": token}
        return await self._majority.find(wanted, lease_queries.CLAIM_PROJECTION).to_list(None)

    async def _claimed_after_all(self, ids: list[str], token: str) -> list[Document]:
        """Find what a claim without an answer took, once a majority has it; wait a while for all.

        What is overlooked waits for its lease to expire, with an attempt recorded as unknown.
        """
        found: list[Document] = []
        for _ in range(READ_BACK_TRIES):
            found = await self._try_for(READ_BUDGET_S, lambda: self._held_by(ids, token))
            if len(found) == len(ids):
                break
            await asyncio.sleep(READ_BACK_WAIT_S)
        return found

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement | None]:
        """End claims in one round trip: record the attempt and give the lease back.

        Each write matches its lease token, so a dispatcher that overran its lease changes
        nothing. Returns, in order, None where the lease was lost before the attempt was
        recorded, else how the claim ended: as asked for or, where an operator cancelled the
        event meanwhile, with the attempt as its last. Retried until the leases themselves are
        over.

        Raises:
            StoreUnavailableError: no confirmation in time; what was not recorded becomes an
                attempt of unknown outcome when its lease is found expired.
        """
        if await self._end(settlements) == len(settlements):
            return list(settlements)
        retried = [
            each
            for each in settlements
            if each.attempt is not None and each.status is Status.DELIVERING
        ]
        if retried:
            await self._end([_cancelled(each) for each in retried])
        attempted = [each for each in settlements if each.attempt is not None]
        recorded: dict[tuple[str, int], Document] = {}
        if attempted:
            found = await self._try_for(
                READ_BUDGET_S,
                lambda: self._majority.find(
                    lease_queries.settled(attempted), lease_queries.SETTLED_PROJECTION
                ).to_list(None),
            )
            recorded = {
                (document["_id"], attempt["attempt_number"]): document
                for document in found
                for attempt in document["attempts"]
                if attempt["outcome"] != Outcome.UNKNOWN
            }
        return [each if each.attempt is None else _ended(each, recorded) for each in settlements]

    async def _end(self, settlements: Sequence[Settlement]) -> int:
        """Write the ends of these claims; return how many had their lease still.

        One by one on a sharded cluster, where an update of many may miss documents that move to
        another shard meanwhile, and count them (https://jira.mongodb.org/browse/TOOLS-3431). And
        where MongoDB refuses something, which must not keep the rest of its claim from being
        recorded.
        """
        apart = self._mongo.sharded
        try:
            return await self._write_ends(
                lease_queries.settlements(settlements, apart=apart), settlements
            )
        except StoreUnavailableError as error:
            if apart or error.__cause__ is None or transient(error.__cause__):
                raise
        return await self._write_ends(
            lease_queries.settlements(settlements, apart=True), settlements
        )

    async def _write_ends(
        self, writes: list[UpdateOne | UpdateMany], settlements: Sequence[Settlement]
    ) -> int:
        budget = max(each.claim.trusted_until for each in settlements) - uptime()
        written = await self._try_for(
            max(budget, 0), lambda: self._events.bulk_write(writes, ordered=False)
        )
        return written.matched_count


def _cancelled(settlement: Settlement) -> Settlement:
    """Return the end instead of a retry, for an event that an operator cancelled meanwhile."""
    return replace(settlement, status=Status.FAILED_PERMANENTLY, cancelled=True)


def _ended(settlement: Settlement, recorded: dict[tuple[str, int], Document]) -> Settlement | None:
    """Tell how a claim with an attempt ended, by what is recorded of its event by now."""
    claim = settlement.claim
    event = recorded.get((claim.id, claim.attempt_number))
    if event is None:
        return None
    is_last = event["attempt_count"] == claim.attempt_number
    retried = settlement.status is Status.DELIVERING
    if retried and is_last and event["status"] == Status.FAILED_PERMANENTLY:
        return _cancelled(settlement)
    return settlement


def _claim(document: Document, token: str, held_since: float, trusted_until: float) -> Claim:
    lease = document["lease"]
    return Claim(
        id=document["_id"],
        token=token,
        attempt_number=document["attempt_count"],
        leased_at=lease["since"],
        held_since=held_since,
        trusted_until=trusted_until,
        destination=document["destination"],
        event_type=document["event_type"],
        content_type=document["content_type"],
        payload=document["payload"],
        waited_s=(lease["since"] - lease["due_at"]).total_seconds(),
        recovered="recovered" in lease,
        trace=document.get("trace"),
        attempts_before=document.get("attempts_before", 0),
    )
