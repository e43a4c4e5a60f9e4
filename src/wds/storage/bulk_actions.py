"""Replay and cancel in the database: one event at once, many as a bulk action.

A bulk action is a document of its own. Whichever process holds its lease carries it out a chunk
at a time, oldest event first. What must stay true:

* The ids of a chunk are written down before the first of them is changed, and what it came to
  afterwards, so whoever takes over neither leaves an event out nor goes past `limit`.
* Every write to the document matches the lease's token, and every write to an event the request's
  id, so a process that wakes up late changes nothing.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern

from wds.api import event_schemas
from wds.domain.deliveries import Status
from wds.domain.errors import SearchTooSlowError
from wds.domain.operator_actions import Action, Instruction
from wds.storage import action_queries, collection_names, event_queries
from wds.storage.mongo import FOREVER, READ_BUDGET_S, SEARCH_LIMIT_MS, WRITE_BUDGET_S
from wds.web import schemas

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from wds.storage.mongo import Document, MongoDatabase
    from wds.storage.rollups import Rollups

CHUNK = 200
"""Events changed by one write: some tens of milliseconds of MongoDB's time."""
LEASE_S = 15.0
"""Seconds after which another process takes over from one that died; more than a search takes."""
TRIES = 3
CHUNK_BUDGET_S = 30.0
RECENT = 50
"""Bulk actions listed, the latest first."""


class Verdict(StrEnum):
    """What an instruction meant for one event."""

    DONE = "done"
    REPEATED = "repeated"
    """An earlier request under the same id did it."""
    CONFLICT = "conflict"
    """An earlier request under the same id did the other action."""
    LEASED = "leased"
    WAITING = "waiting"
    """It waits for an attempt with the whole schedule before it, so there is nothing to replay."""
    FINAL = "final"
    CANCELLING = "cancelling"
    FULL = "full"
    """Its record leaves no room for further attempts."""


@dataclass(frozen=True, slots=True)
class Changed:
    """One event after an instruction: as it is now, without its payload, and the verdict."""

    verdict: Verdict
    event: Document


class BulkActions:
    """Changes to events by operators. What is not confirmed is `StoreUnavailableError`."""

    def __init__(self, mongo: MongoDatabase, rollups: Rollups) -> None:
        """Take the connection to use, and the kept counts, which replays change."""
        self._mongo = mongo
        self._try_for = mongo.try_for
        self._rollups = rollups
        self._events = mongo.db[collection_names.EVENTS]
        # Shows a write only once a majority has it: a repeat is confirmed no sooner.
        self._linear = self._events.with_options(read_concern=ReadConcern("linearizable"))
        self._bulk = mongo.db[action_queries.BULK]

    async def open(self) -> None:
        """Make the indexes of bulk actions."""
        bulk = self._mongo.queue_db[action_queries.BULK]
        await self._try_for(FOREVER, lambda: bulk.create_indexes(action_queries.BULK_INDEXES))

    async def one(self, event_id: str, instruction: Instruction) -> Changed | None:
        """Carry out an instruction on one event, if it applies; None if there is no such event.

        Safe to repeat: the instruction's request id is on the event's record once it is done.
        """
        event: Document = {}
        if instruction.action is Action.REPLAY:
            await self._reopen([event_id])
        for _ in range(TRIES):
            changed = await self._try_for(
                WRITE_BUDGET_S,
                lambda: self._events.find_one_and_update(
                    action_queries.wanted_alone(event_id, instruction),
                    action_queries.update(instruction),
                    projection={"payload": 0},
                    return_document=ReturnDocument.AFTER,
                ),
            )
            if changed is not None:
                return Changed(Verdict.DONE, changed)
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
                return Changed(verdict, event)
            # It changed between the two, as by a dispatcher's settlement: look again.
        return Changed(Verdict.FULL, event)

    # -- bulk actions, as operators see them -----------------------------------------------

    async def start(
        self,
        instruction: Instruction,
        *,
        wanted: str,
        limit: int | None,
        per_second: float | None,
        matched: int | None,
    ) -> tuple[Document, bool]:
        """Write down a bulk action, to be carried out; return it, and whether it is new.

        `wanted` is the JSON text of its filters. If the request id is known, what is returned is
        the bulk action it belongs to.
        """
        document = action_queries.new_bulk(
            instruction,
            filters=wanted,
            limit=limit,
            per_second=per_second,
            matched=matched,
            now=await self._mongo.now(),
        )

        async def insert() -> bool:
            try:
                await self._bulk.insert_one(document)
            except DuplicateKeyError:
                return False
            return True

        new = await self._try_for(WRITE_BUDGET_S, insert)
        stored = document if new else await self.get(instruction.request_id)
        return (document, True) if stored is None else (stored, new)

    async def get(self, request_id: str) -> Document | None:
        """Return a bulk action with its progress, or None."""
        return await self._try_for(
            READ_BUDGET_S, lambda: self._bulk.find_one({"_id": request_id}, {"chunk": 0})
        )

    async def recent(self) -> list[Document]:
        """Return the latest bulk actions, at most `RECENT`."""
        return await self._try_for(
            READ_BUDGET_S,
            lambda: (
                self._bulk.find({}, {"chunk": 0}).sort("started_at", -1).limit(RECENT).to_list(None)
            ),
        )

    async def stop(self, request_id: str) -> tuple[Document | None, bool]:
        """Ask a bulk action to change no further events.

        Returns it, or None, and whether this made a difference: it was running, and not asked.
        """
        running = {"_id": request_id, "state": "running", "stop_requested": {"$exists": False}}
        written = await self._try_for(
            WRITE_BUDGET_S,
            lambda: self._bulk.update_one(running, {"$set": {"stop_requested": True}}),
        )
        return await self.get(request_id), written.modified_count > 0

    # -- bulk actions, as a worker sees them -----------------------------------------------

    async def take(self, owner: str) -> Taken | None:
        """Lease the oldest bulk action that nobody works on; None if there is none."""
        token = secrets.token_hex(8)
        found = await self._try_for(
            0,
            lambda: self._bulk.find_one_and_update(
                action_queries.free_bulk(),
                action_queries.take_bulk(token, owner, round(LEASE_S * 1000)),
                sort=[("started_at", 1)],
                return_document=ReturnDocument.AFTER,
            ),
        )
        return None if found is None else Taken(found, token)

    async def step(self, taken: Taken) -> bool:
        """Carry out the next chunk, or end the bulk action; False if there is no more to do.

        False, too, if the lease was lost: another process has gone on from where this one was.

        Raises:
            SearchTooSlowError: the next events cannot be found in time, `TRIES` times in a row.
        """
        if "chunk" not in taken.document:
            chunk = await self._next_chunk(taken)
            if chunk is None:
                await self._write(taken, action_queries.end_bulk())
                return False
            planned = action_queries.plan_chunk(chunk, round(LEASE_S * 1000))
            if not await self._write(taken, planned):
                return False
        progress = await self._carry_out(taken.document)
        return await self._write(
            taken, action_queries.finish_chunk(progress, round(LEASE_S * 1000))
        )

    async def fail(self, taken: Taken, reason: str) -> None:
        """End a bulk action that cannot be carried out, so that others get their turn."""
        await self._write(taken, action_queries.end_bulk(reason))

    async def _next_chunk(self, taken: Taken) -> Document | None:
        document = taken.document
        left = CHUNK
        if document["limit"] is not None:
            left = min(CHUNK, document["limit"] - document["changed"])
        if left <= 0 or document.get("stop_requested"):
            return None
        wanted = matching(Action(document["action"]), document["filters"], document["started_at"])
        if wanted is None:
            return None
        if "position" in document:
            place = event_queries.Position(
                document["position"]["received_at"], document["position"]["id"]
            )
            wanted = event_queries.after(
                wanted, event_queries.SORTS[event_queries.OLDEST_FIRST], place
            )
        found = await self._find(taken, wanted, left)
        if not found:
            return None
        return {
            "ids": [each["_id"] for each in found],
            "position": {"received_at": found[-1]["received_at"], "id": found[-1]["_id"]},
            "spread": await self._spread(document, len(found)),
        }

    async def _find(self, taken: Taken, wanted: Document, limit: int) -> list[Document]:
        """Return the id and the instant of the first `limit` events that match, oldest first."""
        said, index = event_queries.in_time_order(wanted)

        async def read() -> list[Document]:
            found = self._events.find(
                said, {"received_at": 1}, max_time_ms=SEARCH_LIMIT_MS, hint=index
            )
            return (
                await found.sort(event_queries.SORTS[event_queries.OLDEST_FIRST])
                .limit(limit)
                .to_list(None)
            )

        tries = 1
        while True:
            try:
                return await self._try_for(CHUNK_BUDGET_S, lambda: self._mongo.search(read))
            except SearchTooSlowError:
                # Once may be MongoDB's stall; always, it would keep all others waiting for ever.
                renewed = action_queries.renew_bulk(round(LEASE_S * 1000))
                if tries == TRIES or not await self._write(taken, renewed):
                    raise
                tries += 1

    async def _spread(self, document: Document, events: int) -> Document | None:
        """Return over which time these events become due; None for at once."""
        if not document["per_second"]:
            return None
        now = await self._mongo.now()
        start = max(document.get("due_through", now), now)
        return {"start": start, "length_ms": round(events / document["per_second"] * 1000)}

    async def _carry_out(self, document: Document) -> Document:
        """Change the events of the chunk that is written down; return the progress after it."""
        ids, spread = document["chunk"]["ids"], document["chunk"]["spread"]
        instruction = Instruction(
            Action(document["action"]),
            document["_id"],
            document["by"],
            document["remote"],
            document["reason"],
        )
        if instruction.action is Action.REPLAY:
            await self._reopen(ids)
        update = action_queries.update(
            instruction, spread and (spread["start"], spread["length_ms"])
        )
        await self._try_for(
            CHUNK_BUDGET_S,
            lambda: self._events.update_many(action_queries.wanted(ids, instruction), update),
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

    async def _reopen(self, ids: Sequence[str]) -> None:
        """Forget the kept counts of hours whose finished events are about to live again.

        Of live ones too: they might finish, and be counted, just before they are replayed.
        """
        chosen = {"_id": {"$in": list(ids)}}
        found = await self._try_for(
            READ_BUDGET_S, lambda: self._events.find(chosen, {"received_at": 1}).to_list(None)
        )
        if found:
            await self._rollups.reopen(each["received_at"] for each in found)

    async def _write(self, taken: Taken, update: list[Document]) -> bool:
        """Write to the document under its lease; False if the lease was lost."""
        written = await self._try_for(
            WRITE_BUDGET_S,
            lambda: self._bulk.find_one_and_update(
                action_queries.held_bulk(taken.document["_id"], taken.token),
                update,
                return_document=ReturnDocument.AFTER,
            ),
        )
        if written is not None:
            taken.document = written
        return written is not None


@dataclass(slots=True)
class Taken:
    """A bulk action that this process works on, as last written, and the token of its lease."""

    document: Document
    token: str


def matching(action: Action, wanted: str, before: datetime) -> Document | None:
    """Match the events that a bulk action is about: its filters' JSON, received before its start.

    Statuses in which there is nothing to do are left out; None if none is left.
    """
    given = event_schemas.filters_of(schemas.load(event_schemas.FilterSchema(), json.loads(wanted)))
    asked = given.get("status") or list(Status)
    affected = [str(status) for status in action_queries.AFFECTED[action] if status in asked]
    if not affected:
        return None
    matched = {**event_queries.match(**given), "status": {"$in": affected}}
    return event_queries.narrowed(matched, {"received_at": {"$lt": before}})


def _verdict(event: Document, instruction: Instruction) -> Verdict | None:
    """Tell why an instruction did not apply to an event; None if nothing of it says so."""
    history = event.get("history", [])
    did = {each["action"] for each in history if each["request_id"] == instruction.request_id}
    if did:
        return Verdict.REPEATED if instruction.action in did else Verdict.CONFLICT
    if "cancelling" in event:
        return Verdict.CANCELLING
    if instruction.action is Action.CANCEL:
        return None if event["status"] in set(action_queries.LIVE) else Verdict.FINAL
    if "lease" in event:
        return Verdict.LEASED
    if event["status"] == Status.RECEIVED or event["attempt_count"] <= event.get(
        "attempts_before", 0
    ):
        return Verdict.WAITING
    return None
