"""The lease queue in MongoDB.

# Overview

The collection `events` is the queue: one document per event. A dispatcher claims due events, which
leases them to it for a while, sends each, and settles each claim, which records the attempt and
releases the lease. `domain.lease_queue.LeaseQueue` is the contract; `lease_queries` has the filters
and pipelines, `event_documents` every field.

# State

`next_attempt_at` exists exactly while an event is live. It is the time at which the event is due
or, while the event is leased, the time at which the lease expires. So a new event, a retry and the
event of a dead dispatcher are found by one predicate, `next_attempt_at <= $$NOW`, with one index.
No process has to look for expired leases.

A claim first reads the ids of due events (a peek, answered by the index alone), then writes by id
and repeats the predicate in the write. MongoDB serialises the writes to one document: of several
claims of one event, the first takes the lease and moves `next_attempt_at` into the future, and the
others match nothing.

* One event: `find_one_and_update` on one peeked id after the other, until one is leased.
* Many: peek at more than `limit`, take a random sample so that replicas do not compete for the same
  ids, write once with `update_many` under a fresh token, and read back the events with that token.

# Trust window

The lease is as long for the database as for its holder, but the holder learns of it later and
reads another clock. Before each request the holder therefore checks a deadline on its own clock:

    trusted_until = uptime() before the claim is sent + lease_s
    it may send while  uptime() + request_timeout + SETTLE_MARGIN_S <= trusted_until

The database starts the lease after the claim was sent, so `trusted_until` is earlier than the
expiry. `mongo.uptime()` counts the time in which the machine was suspended; `time.monotonic()` does
not.

# Failures

* **The holder dies or stalls.** Its lease expires. The next claim takes the event over and records
  the lost attempt as `unknown`, or buries the event if that was its last attempt.
* **The holder settles too late.** The write matches the token of its lease (the fence), finds
  nothing, and changes nothing. `settle` returns None.
* **The answer to a claim is lost.** A read of the fresh token finds the leases that exist. It reads
  with majority read concern, because a failover can undo what a single member shows. A lease that
  it misses expires.
* **The answer to a settlement is lost.** The write is repeated. If it matches nothing, a stored
  attempt shows that the first write took place.
* **A read or write fails for longer than its retries.** `StoreUnavailableError`.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, cast

import structlog
from msgspec.structs import replace
from pymongo import ReturnDocument
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern

from wds.domain.deliveries import Outcome, Settlement, Status
from wds.domain.errors import StoreUnavailableError
from wds.domain.lease_queue import BACKLOG_CAP, Backlog
from wds.storage import lease_queries
from wds.storage.claim_result import claim_result
from wds.storage.collection_names import EVENTS
from wds.storage.event_documents import CLAIM_PROJECTION, SETTLED_PROJECTION
from wds.storage.mongo import (
    READ_BUDGET_S,
    MongoDatabase,
    ending_if_cancelled,
    uptime,
)
from wds.storage.mongo_errors import is_transient

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from pymongo import UpdateMany, UpdateOne
    from pymongo.asynchronous.collection import AsyncCollection

    from wds.domain.deliveries import Claimed
    from wds.storage.change_stream import ChangeStream
    from wds.storage.event_documents import EventDocument
    from wds.storage.mongo import Pipeline

log = structlog.get_logger(__name__)

READ_BACK_TRIES = 10
READ_BACK_WAIT_S = 0.05
PEEK_FACTOR = 4
"""Due ids read per event to lease; the sample from them keeps replicas from competing."""
MIN_PEEK = 16
"""Minimum number of due ids to read."""
MAX_PEEKS = 3
"""Peeks by which a claim of one event tries to lease one. A peek finds nothing to lease if other
replicas were first for all of its events, or if the claim buries them."""

LARGE_BACKLOG = 10_000
LARGE_BACKLOG_EVERY_S = 10.0
"""Seconds between two counts of `LARGE_BACKLOG` or more: every replica counts, and each count reads
one index key per event."""


class _Touched(NamedTuple):
    """The documents that one claim wrote to, as far as it read them back; see `Claimed`."""

    documents: list[EventDocument]
    others_were_first: bool
    buried_unread: int = 0


class MongoLeaseQueue:
    """`LeaseQueue` over the collection of events. See the docstring of this module."""

    def __init__(self, mongo: MongoDatabase, change_stream: ChangeStream) -> None:
        """Use an open connection; `change_stream` notifies of events."""
        self._mongo = mongo
        self._try_for = mongo.try_for
        self._events = cast("AsyncCollection[EventDocument]", mongo.queue_db[EVENTS])
        # Reads that decide whether a write took place see only what no failover can undo.
        self._majority = self._events.with_options(read_concern=ReadConcern("majority"))
        self._change_stream = change_stream
        self._large_backlogs: dict[str, tuple[int, float]] = {}

    # -- claim -----------------------------------------------------------------------------

    async def claim(
        self, destination: str, limit: int, *, owner: str, lease_s: float, max_attempts: int
    ) -> Claimed:
        """Lease up to `limit` due events of `destination`: see `LeaseQueue.claim`."""
        token = secrets.token_hex(8)
        update = lease_queries.claim(token, owner, round(lease_s * 1000), max_attempts)
        trusted_until = uptime() + lease_s
        if limit == 1:
            touched = await self._claim_one(destination, update)
        else:
            touched = await self._claim_many(destination, limit, token, update)
        return claim_result(
            touched.documents,
            token,
            held_since=monotonic(),
            trusted_until=trusted_until,
            others_were_first=touched.others_were_first,
            buried_unread=touched.buried_unread,
        )

    async def _peek(self, destination: str, limit: int) -> list[str]:
        """Return the ids of up to `limit` events that are due, in due order.

        Some that become due within the next milliseconds may be among them.
        """
        command = lease_queries.peek(destination, await self._mongo.now_at_latest(), limit)
        # A cursor would cost a fifth more, and an idle dispatcher does little else than this.
        found = await self._try_for(0, lambda: self._mongo.queue_db.command(command))
        return [document["_id"] for document in found["cursor"]["firstBatch"]]

    async def _claim_one(self, destination: str, update: Pipeline) -> _Touched:
        """Lease the first due event that no other replica leases at the same moment.

        The number of peeks is limited: after a failover to a member with a slower clock, events may
        look due that are not due for a while.
        """
        touched: list[EventDocument] = []
        for peeks_before in range(MAX_PEEKS):
            ids = await self._peek(destination, MIN_PEEK)
            if not ids:
                return _Touched(touched, others_were_first=peeks_before > 0 and not touched)
            touched += await self._lease_first(ids, destination, update)
            if touched and "lease" in touched[-1]:
                return _Touched(touched, others_were_first=False)
        return _Touched(touched, others_were_first=not touched)

    async def _lease_first(
        self, ids: list[str], destination: str, update: Pipeline
    ) -> list[EventDocument]:
        """Lease the first of `ids` that is still due.

        Returns the events that were buried before it, then the leased one.
        """
        touched: list[EventDocument] = []
        for event_id in ids:
            document = await self._lease_or_bury(event_id, destination, update)
            if document is not None:
                touched.append(document)
                if "lease" in document:
                    break
        return touched

    async def _lease_or_bury(
        self, event_id: str, destination: str, update: Pipeline
    ) -> EventDocument | None:
        """Lease or bury one event if it is still due; None if it is not."""
        return await self._try_for(
            0,
            lambda: self._events.find_one_and_update(
                {"_id": event_id, **lease_queries.claimable(destination)},
                update,
                projection=CLAIM_PROJECTION,
                return_document=ReturnDocument.AFTER,
                hint="_id_",
            ),
        )

    async def _claim_many(
        self, destination: str, limit: int, token: str, update: Pipeline
    ) -> _Touched:
        peeked = await self._peek(destination, max(limit * PEEK_FACTOR, MIN_PEEK))
        if not peeked:
            return _Touched([], others_were_first=False)
        if len(peeked) == 1:  # one round trip instead of two
            touched = await self._lease_first(peeked, destination, update)
            return _Touched(touched, others_were_first=not touched)
        ids = random.sample(peeked, min(limit, len(peeked)))
        due = {"_id": {"$in": ids}, **lease_queries.claimable(destination)}
        try:
            written = await ending_if_cancelled(
                lambda: self._events.update_many(due, update, hint="_id_")
            )
        except PyMongoError as error:
            if not is_transient(error):
                raise
            log.warning("claim_outcome_unknown", error=type(error).__name__, events=len(ids))
            leased = await self._leased_after_lost_answer(ids, token)
            return _Touched(leased, others_were_first=not leased)
        leased = await self._try_for(READ_BUDGET_S, lambda: self._leased(ids, token))
        buried: list[EventDocument] = []
        if written.modified_count > len(leased):
            buried = await self._buried(ids, token)
        touched = leased + buried
        return _Touched(
            touched,
            others_were_first=not written.modified_count,
            buried_unread=max(written.modified_count - len(touched), 0),
        )

    async def _leased(self, ids: list[str], token: str) -> list[EventDocument]:
        leased = lease_queries.leased_by(ids, token)
        return await self._majority.find(leased, CLAIM_PROJECTION).to_list(None)

    async def _buried(self, ids: list[str], token: str) -> list[EventDocument]:
        """Return which of `ids` this claim buried; if the read fails, none.

        They only serve log lines, so a failure must not cost the claim its leases.
        """
        buried = lease_queries.buried_by(ids, token)
        try:
            return await self._try_for(
                0, lambda: self._events.find(buried, {"buried": 1}).to_list(None)
            )
        except StoreUnavailableError:
            return []

    async def _leased_after_lost_answer(self, ids: list[str], token: str) -> list[EventDocument]:
        """Read which of `ids` a claim leased whose answer was lost, once a majority has the write.

        Waits up to `READ_BACK_TRIES` times for all of them. An event that it misses stays leased
        until the lease expires; its attempt is then recorded as `unknown`.
        """
        leased: list[EventDocument] = []
        for _ in range(READ_BACK_TRIES):
            leased = await self._try_for(READ_BUDGET_S, lambda: self._leased(ids, token))
            if len(leased) == len(ids):
                break
            await asyncio.sleep(READ_BACK_WAIT_S)
        return leased

    # -- settle ----------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement | None]:
        """Settle claims in one round trip: see `LeaseQueue.settle`.

        Two more writes or reads follow only if a lease was lost, an event cancelled, or an answer
        lost.
        """
        if await self._settle(settlements) == len(settlements):
            return list(settlements)
        attempted = [each for each in settlements if each.attempt is not None]
        retried = [each for each in attempted if each.status is Status.DELIVERING]
        if retried:
            await self._settle([_cancelled(each) for each in retried])
        recorded = await self._recorded(attempted) if attempted else {}
        return [
            each if each.attempt is None else _confirmed(each, recorded) for each in settlements
        ]

    async def _recorded(self, attempted: list[Settlement]) -> dict[tuple[str, int], EventDocument]:
        """Return the events of these settlements by id and number of each stored attempt."""
        found = await self._try_for(
            READ_BUDGET_S,
            lambda: self._majority.find(
                lease_queries.settled_by(attempted), SETTLED_PROJECTION
            ).to_list(None),
        )
        return {
            (document["_id"], attempt["attempt_number"]): document
            for document in found
            for attempt in document["attempts"]
            if attempt["outcome"] != Outcome.UNKNOWN
        }

    async def _settle(self, settlements: Sequence[Settlement]) -> int:
        """Write these settlements; return how many claims still had their lease.

        One write per event on a sharded cluster: there an update of many can miss documents that
        move to another shard meanwhile, and still count them
        (https://jira.mongodb.org/browse/TOOLS-3431). Also one write per event after MongoDB has
        refused one of them, so that the others are recorded.
        """
        one_by_one = self._mongo.sharded
        try:
            return await self._bulk_write(
                lease_queries.settlement_writes(settlements, one_by_one=one_by_one), settlements
            )
        except StoreUnavailableError as error:
            if one_by_one or error.__cause__ is None or is_transient(error.__cause__):
                raise
        return await self._bulk_write(
            lease_queries.settlement_writes(settlements, one_by_one=True), settlements
        )

    async def _bulk_write(
        self, writes: list[UpdateOne | UpdateMany], settlements: Sequence[Settlement]
    ) -> int:
        budget_s = max(each.claim.trusted_until for each in settlements) - uptime()
        written = await self._try_for(
            max(budget_s, 0), lambda: self._events.bulk_write(writes, ordered=False)
        )
        return written.matched_count

    # -- due events ------------------------------------------------------------------------

    async def wait_for_change(self, destination: str, max_s: float) -> bool:
        """Block until an event may have become due: see `LeaseQueue.wait_for_change`."""
        return await self._change_stream.wait(destination, max_s)

    async def backlog(self, destination: str) -> Backlog:
        """Count the events that are due now: see `LeaseQueue.backlog`.

        A count of `LARGE_BACKLOG` or more may be `LARGE_BACKLOG_EVERY_S` old.
        """
        now = await self._mongo.now()
        due = lease_queries.due_at(destination, now)
        oldest = await self._try_for(
            0,
            lambda: self._events.find_one(
                due, {"_id": 0, "next_attempt_at": 1}, sort=lease_queries.DUE_ORDER
            ),
        )
        if oldest is None:
            return Backlog(0, 0.0)
        count, counted_at = self._large_backlogs.get(destination, (0, 0.0))
        if count < LARGE_BACKLOG or monotonic() - counted_at >= LARGE_BACKLOG_EVERY_S:
            count = await self._try_for(
                0, lambda: self._events.count_documents(due, limit=BACKLOG_CAP, hint="claim")
            )
            self._large_backlogs[destination] = count, monotonic()
        age: timedelta = now - oldest["next_attempt_at"]
        return Backlog(count, max(age.total_seconds(), 0.0))


def _cancelled(settlement: Settlement) -> Settlement:
    """Return the settlement that replaces a retry of a cancelled event and makes it final."""
    return replace(settlement, status=Status.FAILED_PERMANENTLY, cancelled=True)


def _confirmed(
    settlement: Settlement, recorded: dict[tuple[str, int], EventDocument]
) -> Settlement | None:
    """Return the settlement that the stored event shows; None if its attempt is not stored."""
    claim = settlement.claim
    event = recorded.get((claim.id, claim.attempt_number))
    if event is None:
        return None
    is_last = event["attempt_count"] == claim.attempt_number
    retried = settlement.status is Status.DELIVERING
    if retried and is_last and event["status"] == Status.FAILED_PERMANENTLY:
        return _cancelled(settlement)
    return settlement
