"""Queries and updates of replay, cancel and bulk actions, as plain data. Pure.

What must stay true:

* Each action changes an event and its `history` in one write to one document.
* No action changes a lease. A leased event is not replayed; cancelling one only marks it, and the
  write that ends the lease then makes the event final (`lease_queries`).
* The request's id is part of the query and is added to `history` with the action. A repeat, of one
  write or of a bulk action interrupted at any point, therefore changes nothing twice.
* Attempts stay, and later ones continue their numbers. `attempts_before` is the number of attempts
  at the last replay: the retry schedule is counted from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymongo import ASCENDING, DESCENDING, IndexModel

from wds.domain.operator_actions import PRECONDITIONS, Action, BulkAction, Presence
from wds.storage.event_documents import (
    ATTEMPTS_SINCE_REPLAY,
    FINAL_BY_LAST_ATTEMPT,
    IS_LEASED,
    WAITING_STATUS,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from wds.domain.operator_actions import AttemptsSinceReplay, Instruction
    from wds.storage.mongo import Document

BULK_ACTIONS = "bulk_actions"
BULK_ACTION_KEPT_S = 90 * 24 * 3600
"""Seconds for which a finished bulk action is kept."""

BULK_ACTION_INDEXES = [
    IndexModel([("state", ASCENDING), ("started_at", ASCENDING)], name="running"),
    IndexModel([("started_at", DESCENDING)], name="recent"),
    IndexModel([("finished_at", ASCENDING)], name="forget", expireAfterSeconds=BULK_ACTION_KEPT_S),
]

ROOM_BYTES = 16 * 1024 * 1024 - 512 * 1024
"""An event of this size is not replayed: a document of MongoDB has at most 16 MiB, and further
attempts need room."""

_HAS_ROOM = {"$lt": [{"$bsonSize": "$$ROOT"}, ROOM_BYTES]}


# -- one event or a chunk of them ------------------------------------------------------------


def possible(action: Action) -> Document:
    """Match the events that meet the action's preconditions (`operator_actions`)."""
    conditions = []
    for precondition in PRECONDITIONS[action]:
        alternatives = [_condition(each) for each in precondition.alternatives]
        conditions.append(alternatives[0] if len(alternatives) == 1 else {"$or": alternatives})
    return {"$and": conditions}


def _condition(condition: Presence | AttemptsSinceReplay) -> Document:
    if isinstance(condition, Presence):
        return {condition.field: {"$exists": condition.present}}
    return {"$expr": {"$gte": [ATTEMPTS_SINCE_REPLAY, condition.least]}}


def applicable(ids: Sequence[str], instruction: Instruction) -> Document:
    """Match the events among `ids` that the instruction changes: possible, and not done before."""
    query = {
        "_id": {"$in": list(ids)},
        "history": {"$not": _entry_of(instruction.action, instruction.request_id)},
        **possible(instruction.action),
    }
    return query if instruction.action is Action.CANCEL else {**query, "$expr": _HAS_ROOM}


def applicable_alone(event_id: str, instruction: Instruction) -> Document:
    """Match the event if `applicable` does and the request has not done the other action either.

    One request id for both actions is a mistake of the caller. Only a request about one event can
    report it.
    """
    unused = {"history.request_id": {"$ne": instruction.request_id}}
    return {**applicable([event_id], instruction), **unused}


def done(ids: Sequence[str], action: Action, request_id: str) -> Document:
    """Match the events among `ids` that this request has replayed or cancelled, now or earlier."""
    return {"_id": {"$in": list(ids)}, "history": _entry_of(action, request_id)}


def _entry_of(action: Action, request_id: str) -> Document:
    return {"$elemMatch": {"action": action, "request_id": request_id}}


def update(instruction: Instruction, spread: tuple[datetime, int] | None = None) -> list[Document]:
    """Return the write of an action, for an event that `applicable` matches.

    A replayed event is due at once. With `spread` (instant, milliseconds) it is due at a random
    instant within that many milliseconds, so that new events are delivered in between.
    """
    if instruction.action is Action.CANCEL:
        return [{"$set": {**_cancel(), "history": _with_entry(instruction)}}]
    due: object = "$$NOW"
    if spread is not None:
        start, length_ms = spread
        due = {"$add": [start, {"$toLong": {"$multiply": [{"$rand": {}}, length_ms]}}]}
    return [{"$set": {**_replay(due), "history": _with_entry(instruction)}}]


def _replay(due: object) -> Document:
    return {
        "status": WAITING_STATUS,
        "attempts_before": "$attempt_count",
        "next_attempt_at": due,
        "finished_at": "$$REMOVE",
        "buried": "$$REMOVE",
    }


def _cancel() -> Document:
    return {
        "status": {"$cond": [IS_LEASED, "$status", FINAL_BY_LAST_ATTEMPT]},
        "next_attempt_at": {"$cond": [IS_LEASED, "$next_attempt_at", "$$REMOVE"]},
        "finished_at": {"$cond": [IS_LEASED, "$$REMOVE", "$$NOW"]},
        "cancelling": {"$cond": [IS_LEASED, {"$literal": True}, "$$REMOVE"]},
    }


def _with_entry(instruction: Instruction) -> Document:
    entry = {
        "action": {"$literal": instruction.action},
        "at": "$$NOW",
        "by": {"$literal": instruction.by},
        "remote": {"$literal": instruction.remote},
        "reason": {"$literal": instruction.reason},
        "request_id": {"$literal": instruction.request_id},
        "status": "$status",
        "attempt_count": "$attempt_count",
    }
    return {"$concatArrays": [{"$ifNull": ["$history", []]}, [entry]]}


# -- bulk actions: one document each ---------------------------------------------------------


def bulk_action_document(
    instruction: Instruction,
    *,
    filters: str,
    limit: int | None,
    per_second: float | None,
    matched: int | None,
    now: datetime,
) -> Document:
    """Return the document of a new bulk action, without a lease.

    `filters` is from `event_filter.filter_text`. The bulk action changes only
    events received before `now`.
    """
    return {
        "_id": instruction.request_id,
        "action": instruction.action,
        "by": instruction.by,
        "remote": instruction.remote,
        "reason": instruction.reason,
        "filters": filters,
        "limit": limit,
        "per_second": per_second,
        "matched": matched,
        "examined": 0,
        "changed": 0,
        "state": "running",
        "started_at": now,
    }


def read_bulk_action(document: Document) -> BulkAction:
    """Read a stored bulk action."""
    same = (
        *("by", "remote", "reason", "filters", "limit", "per_second", "matched"),
        *("examined", "changed", "state", "started_at"),
    )
    return BulkAction(
        request_id=document["_id"],
        action=Action(document["action"]),
        **{name: document[name] for name in same},
        finished_at=document.get("finished_at"),
        stop_requested=document.get("stop_requested", False),
        failure=document.get("failure"),
    )


def free_bulk_action() -> Document:
    """Match the running bulk actions without a lease, or with an expired one."""
    return {
        "state": "running",
        "$or": [
            {"lease": {"$exists": False}},
            {"$expr": {"$lte": ["$lease.until", "$$NOW"]}},
        ],
    }


def lease_bulk_action(token: str, owner: str, lease_ms: int) -> list[Document]:
    """Lease a bulk action to one process."""
    lease = {
        "token": {"$literal": token},
        "owner": {"$literal": owner},
        "until": {"$add": ["$$NOW", lease_ms]},
    }
    return [{"$set": {"lease": lease}}]


def held_bulk_action(request_id: str, token: str) -> Document:
    """Match a bulk action only while it has the lease with this token: the fence."""
    return {"_id": request_id, "lease.token": token}


def plan_chunk(chunk: Document, lease_ms: int) -> list[Document]:
    """Record the ids of the next chunk before any of its events is changed; renew the lease.

    A process that takes the bulk action over finishes this chunk first: once part of it is carried
    out, the filters no longer match the same events.
    """
    return [
        {
            "$set": {
                "chunk": {"$literal": chunk},
                "lease.until": {"$add": ["$$NOW", lease_ms]},
            }
        }
    ]


def renew_bulk_lease(lease_ms: int) -> list[Document]:
    """Renew the lease alone, while finding the next chunk takes long."""
    return [{"$set": {"lease.until": {"$add": ["$$NOW", lease_ms]}}}]


def finish_chunk(progress: Document, lease_ms: int) -> list[Document]:
    """Record the progress after a chunk, in absolute numbers; renew the lease."""
    return [
        {
            "$set": {
                **{name: {"$literal": value} for name, value in progress.items()},
                "chunk": "$$REMOVE",
                "lease.until": {"$add": ["$$NOW", lease_ms]},
            }
        }
    ]


def finish_bulk_action(failure: str | None = None) -> list[Document]:
    """Finish a bulk action: failed, or stopped if an operator asked for that, or else done."""
    state: object = {
        "$cond": [
            {"$eq": ["$stop_requested", True]},
            {"$literal": "stopped"},
            {"$literal": "done"},
        ]
    }
    if failure is not None:
        state = {"$literal": "failed"}
    return [
        {
            "$set": {
                "state": state,
                "failure": {"$literal": failure},
                "finished_at": "$$NOW",
                "lease": "$$REMOVE",
            }
        }
    ]
