"""Replay and cancel in the database: one event at once, many as a bulk action.

A bulk action is a document of its own. The process with its lease carries it out a chunk at a
time, oldest event first. What must stay true:

* The ids of a chunk are recorded before the first of them is changed, and the progress after the
  last. A process that takes over neither omits an event nor exceeds `limit`.
* Every write to the document matches the lease's token, and every write to an event the request's
  id, so a process whose lease has expired changes nothing.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern

from wds.domain.errors import SearchTooSlowError
from wds.domain.event_filter import OLDEST_FIRST, SORTS, Position, read_filter
from wds.domain.operator_actions import Action, Verdict, affected_events, obstacle
from wds.storage import action_queries, collection_names, event_queries
from wds.storage.mongo import FOREVER, READ_BUDGET_S, SEARCH_LIMIT_MS, WRITE_BUDGET_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wds.domain.operator_actions import BulkAction, Instruction
    from wds.storage.mongo import Document, MongoDatabase
    from wds.storage.rollups import Rollups

CHUNK = 200
"""Events changed by one write: some tens of milliseconds of MongoDB's time."""
LEASE_S = 15.0
"""Seconds after which another process takes over a bulk action; longer than a search may take."""
TRIES = 3
CHUNK_BUDGET_S = 30.0
RECENT = 50
"""Bulk actions in a list, the latest first."""


@dataclass(frozen=True, slots=True)
class ActionResult:
    """The result of an instruction on one event, and the event after it, without its payload."""

    verdict: Verdict
    event: Document


@dataclass(slots=True)
class HeldBulkAction:
    """A bulk action that this process has leased: its document as last written, and the token."""

    document: Document
    token: str

    @property
    def bulk_action(self) -> BulkAction:
        """Return the bulk action and its progress."""
        return action_queries.read_bulk_action(self.document)


class BulkActions:
    """Changes to events by operators.

    Every method raises `StoreUnavailableError` if MongoDB does not confirm it.
    """

    def __init__(self, mongo: MongoDatabase, rollups: Rollups) -> None:
        """Write over `mongo`; replays invalidate what `rollups` has counted."""
        self._mongo = mongo
        self._try_for = mongo.try_for
        self._rollups = rollups
        self._events = mongo.db[collection_names.EVENTS]
        # Reads a write only once a majority has it, so that a repeat is not confirmed earlier.
        self._linear = self._events.with_options(read_concern=ReadConcern("linearizable"))
        self._bulk_actions = mongo.db[action_queries.BULK_ACTIONS]

    async def open(self) -> None:
        """Make the indexes of bulk actions."""
        bulk_actions = self._mongo.queue_db[action_queries.BULK_ACTIONS]
        await self._try_for(
            FOREVER, lambda: bulk_actions.create_indexes(action_queries.BULK_ACTION_INDEXES)
        )

    async def apply(self, event_id: str, instruction: Instruction) -> ActionResult | None:
        """Carry out an instruction on one event, if possible; None if there is no such event.

        Safe to repeat: the event's history has the request id once it is done.
        """
        event: Document = {}
        if instruction.action is Action.REPLAY:
            await self._reopen_hours([event_id])
        for _ in range(TRIES):
            changed = await self._try_for(
                WRITE_BUDGET_S,
                lambda: self._events.find_one_and_update(
                    action_queries.applicable_alone(event_id, instruction),
                    action_queries.update(instruction),
                    projection={"payload": 0},
                    return_document=ReturnDocument.AFTER,
                ),
            )
            if changed is not None:
                return ActionResult(Verdict.DONE, changed)
            found = await self._try_for(
                READ_BUDGET_S,
                lambda: self._linear.find_one(
                    {"_id": event_id}, {"payload": 0}, max_time_ms=round(READ_BUDGET_S * 1000)
                ),
            )
            if found is None:
                return None
            event = found
            verdict = _verdict(event, instruction)
            if verdict is not None:
                return ActionResult(verdict, event)
            # The event changed between write and read, for example by a settlement: try again.
        return ActionResult(Verdict.FULL, event)

    # -- bulk actions, for operators ---------------------------------------------------------

    async def start(
        self,
        instruction: Instruction,
        *,
        filters: str,
        limit: int | None,
        per_second: float | None,
        matched: int | None,
    ) -> tuple[BulkAction, bool]:
        """Store a bulk action, for a worker to carry out; return it, and whether it is new.

        `filters` is from `event_filter.filter_text`. If the request id is known, the bulk action
        that has it is returned.
        """
        document = action_queries.bulk_action_document(
            instruction,
            filters=filters,
            limit=limit,
            per_second=per_second,
            matched=matched,
            now=await self._mongo.now(),
        )

        async def insert() -> bool:
            try:
                await self._bulk_actions.insert_one(document)
            except DuplicateKeyError:
                return False
            return True

        new = await self._try_for(WRITE_BUDGET_S, insert)
        stored = None if new else await self.get(instruction.request_id)
        return (
            (action_queries.read_bulk_action(document), True) if stored is None else (stored, False)
        )

    async def get(self, request_id: str) -> BulkAction | None:
        """Return a bulk action with its progress, or None."""
        found = await self._try_for(
            READ_BUDGET_S, lambda: self._bulk_actions.find_one({"_id": request_id}, {"chunk": 0})
        )
        return None if found is None else action_queries.read_bulk_action(found)

    async def recent(self) -> list[BulkAction]:
        """Return the `RECENT` latest bulk actions, the latest first."""
        found = await self._try_for(
            READ_BUDGET_S,
            lambda: (
                self._bulk_actions.find({}, {"chunk": 0})
                .sort("started_at", -1)
                .limit(RECENT)
                .to_list(None)
            ),
        )
        return [action_queries.read_bulk_action(each) for each in found]

    async def stop(self, request_id: str) -> tuple[BulkAction | None, bool]:
        """Ask a bulk action to change no further events.

        Returns the bulk action, None if there is none, and whether this request stopped it: it was
        running and nobody had asked before.
        """
        running = {"_id": request_id, "state": "running", "stop_requested": {"$exists": False}}
        written = await self._try_for(
            WRITE_BUDGET_S,
            lambda: self._bulk_actions.update_one(running, {"$set": {"stop_requested": True}}),
        )
        return await self.get(request_id), written.modified_count > 0

    # -- bulk actions, for the worker --------------------------------------------------------

    async def take(self, owner: str) -> HeldBulkAction | None:
        """Lease the oldest bulk action that has no valid lease; None if there is none."""
        token = secrets.token_hex(8)
        leased = await self._try_for(
            0,
            lambda: self._bulk_actions.find_one_and_update(
                action_queries.free_bulk_action(),
                action_queries.lease_bulk_action(token, owner, round(LEASE_S * 1000)),
                sort=[("started_at", 1)],
                return_document=ReturnDocument.AFTER,
            ),
        )
        return None if leased is None else HeldBulkAction(leased, token)

    async def step(self, held: HeldBulkAction) -> bool:
        """Carry out the next chunk, or finish the bulk action.

        Returns True if more may be left to do; False if it is finished, or if the lease was lost
        and another process continues.

        Raises:
            SearchTooSlowError: the next events cannot be found in time, `TRIES` times in a row.
        """
        if "chunk" not in held.document:
            chunk = await self._next_chunk(held)
            if chunk is None:
                await self._write(held, action_queries.finish_bulk_action())
                return False
            planned = action_queries.plan_chunk(chunk, round(LEASE_S * 1000))
            if not await self._write(held, planned):
                return False
        progress = await self._carry_out(held.document)
        return await self._write(held, action_queries.finish_chunk(progress, round(LEASE_S * 1000)))

    async def fail(self, held: HeldBulkAction, reason: str) -> None:
        """Finish a bulk action that cannot be carried out, so that the others get their turn."""
        await self._write(held, action_queries.finish_bulk_action(reason))

    async def _next_chunk(self, held: HeldBulkAction) -> Document | None:
        document = held.document
        size = CHUNK
        if document["limit"] is not None:
            size = min(CHUNK, document["limit"] - document["changed"])
        if size <= 0 or document.get("stop_requested"):
            return None
        affected = affected_events(
            Action(document["action"]), read_filter(document["filters"]), document["started_at"]
        )
        if affected is None:
            return None
        query = event_queries.match(affected)
        if "position" in document:
            position = Position(document["position"]["received_at"], document["position"]["id"])
            query = event_queries.after(query, SORTS[OLDEST_FIRST], position)
        found = await self._find(held, query, size)
        if not found:
            return None
        return {
            "ids": [each["_id"] for each in found],
            "position": {"received_at": found[-1]["received_at"], "id": found[-1]["_id"]},
            "spread": await self._spread(document, len(found)),
        }

    async def _find(self, held: HeldBulkAction, query: Document, limit: int) -> list[Document]:
        """Return the id and the instant of the first `limit` events that match, oldest first."""
        rewritten, index = event_queries.in_time_order(query)

        async def read() -> list[Document]:
            cursor = self._events.find(
                rewritten, {"received_at": 1}, max_time_ms=SEARCH_LIMIT_MS, hint=index
            )
            return await cursor.sort(SORTS[OLDEST_FIRST]).limit(limit).to_list(None)

        tries = 1
        while True:
            try:
                return await self._try_for(CHUNK_BUDGET_S, lambda: self._mongo.search(read))
            except SearchTooSlowError:
                # One may be a stall of MongoDB. Endless retries would hold up all others.
                renewed = action_queries.renew_bulk_lease(round(LEASE_S * 1000))
                if tries == TRIES or not await self._write(held, renewed):
                    raise
                tries += 1

    async def _spread(self, document: Document, events: int) -> Document | None:
        """Return the time span over which these events become due; None for all at once."""
        if not document["per_second"]:
            return None
        now = await self._mongo.now()
        start = max(document.get("due_through", now), now)
        return {"start": start, "length_ms": round(events / document["per_second"] * 1000)}

    async def _carry_out(self, document: Document) -> Document:
        """Change the events of the recorded chunk; return the progress after it."""
        ids, spread = document["chunk"]["ids"], document["chunk"]["spread"]
        instruction = action_queries.read_bulk_action(document).instruction
        if instruction.action is Action.REPLAY:
            await self._reopen_hours(ids)
        update = action_queries.update(
            instruction, spread and (spread["start"], spread["length_ms"])
        )
        await self._try_for(
            CHUNK_BUDGET_S,
            lambda: self._events.update_many(action_queries.applicable(ids, instruction), update),
        )
        changed = await self._try_for(
            CHUNK_BUDGET_S,
            lambda: self._events.count_documents(
                action_queries.done(ids, instruction.action, instruction.request_id)
            ),
        )
        progress: Document = {
            "examined": document["examined"] + len(ids),
            "changed": document["changed"] + changed,
            "position": document["chunk"]["position"],
        }
        if spread is not None:
            progress["due_through"] = spread["start"] + timedelta(
                seconds=changed / document["per_second"]
            )
        return progress

    async def _reopen_hours(self, ids: Sequence[str]) -> None:
        """Invalidate the rollups of the hours in which these events were received.

        This includes live events: one might finish, and be counted, just before it is replayed.
        """
        chosen = {"_id": {"$in": list(ids)}}
        found = await self._try_for(
            READ_BUDGET_S, lambda: self._events.find(chosen, {"received_at": 1}).to_list(None)
        )
        if found:
            await self._rollups.reopen(each["received_at"] for each in found)

    async def _write(self, held: HeldBulkAction, update: list[Document]) -> bool:
        """Write to the document under its lease; False if the lease was lost."""
        written = await self._try_for(
            WRITE_BUDGET_S,
            lambda: self._bulk_actions.find_one_and_update(
                action_queries.held_bulk_action(held.document["_id"], held.token),
                update,
                return_document=ReturnDocument.AFTER,
            ),
        )
        if written is not None:
            held.document = written
        return written is not None


def _verdict(event: Document, instruction: Instruction) -> Verdict | None:
    """Return why an instruction did not apply to an event; None if the event gives no reason."""
    history = event.get("history", [])
    did = {each["action"] for each in history if each["request_id"] == instruction.request_id}
    if did:
        return Verdict.REPEATED if instruction.action in did else Verdict.CONFLICT
    return obstacle(instruction.action, event)
