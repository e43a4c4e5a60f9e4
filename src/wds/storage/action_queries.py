"""What operators do to events: the filters and writes of replay, cancel and bulk actions. Pure.

What must stay true:

* Each action changes an event and its `history` in one write to one document.
* A lease is never disturbed. A leased event is not replayed; cancelling one only marks it, and
  whatever ends the lease then ends the event (`queries`).
* The request's id is part of the filter and goes into `history` with the action, so a repeat,
  whether of one write or of a bulk action that was interrupted anywhere, changes nothing twice.
* Attempts stay and go on counting. `attempts_before` holds how many there were at the last
  replay: the retry schedule is counted from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymongo import ASCENDING, DESCENDING, IndexModel

from wds.domain.deliveries import Status
from wds.domain.operator_actions import Action
from wds.storage.event_documents import FINAL_BY_LAST_ATTEMPT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from wds.domain.operator_actions import Instruction
    from wds.storage.mongo import Document

BULK = "bulk_actions"
BULK_KEPT_S = 90 * 24 * 3600
"""Seconds that a finished bulk action is remembered."""

BULK_INDEXES = [
    IndexModel([("state", ASCENDING), ("started_at", ASCENDING)], name="running"),
    IndexModel([("started_at", DESCENDING)], name="recent"),
    IndexModel([("finished_at", ASCENDING)], name="forget", expireAfterSeconds=BULK_KEPT_S),
]

LIVE = (Status.RECEIVED, Status.DELIVERING)
AFFECTED: Mapping[Action, tuple[Status, ...]] = {
    Action.REPLAY: (Status.DELIVERING, Status.DELIVERED, Status.FAILED_PERMANENTLY),
    Action.CANCEL: LIVE,
}
"""The statuses in which there can be something to do; replaying an untried event is nothing."""

ROOM_BYTES = 16 * 1024 * 1024 - 512 * 1024
"""An event as large as this is not replayed: MongoDB's documents end at 16 MiB, and the attempts
to come need room."""

_ATTEMPTED = {"$gt": ["$attempt_count", {"$ifNull": ["$attempts_before", 0]}]}
_FINISHED = {"$eq": [{"$type": "$next_attempt_at"}, "missing"]}
_LEASED = {"$ne": [{"$type": "$lease"}, "missing"]}
_HAS_ROOM = {"$lt": [{"$bsonSize": "$$ROOT"}, ROOM_BYTES]}


def wanted(ids: Sequence[str], instruction: Instruction) -> Document:
    """Match those of `ids` to which there is something to do.

    A replay: not leased, and finished or waiting after a failure. A cancel: not final.
    """
    common = {
        "_id": {"$in": list(ids)},
        "history": {"$not": _entry_of(instruction.action, instruction.request_id)},
    }
    if instruction.action is Action.CANCEL:
        return {**common, "next_attempt_at": {"$exists": True}, "cancelling": {"$exists": False}}
    return {
        **common,
        "lease": {"$exists": False},
        "$expr": {"$and": [{"$or": [_FINISHED, _ATTEMPTED]}, _HAS_ROOM]},
    }


def wanted_alone(event_id: str, instruction: Instruction) -> Document:
    """Match the event if `wanted` does and the request's id is on its record with neither action.

    An id that did the other action to it is a caller's mistake, which only one who asks about
    one event can be told of.
    """
    unused = {"history.request_id": {"$ne": instruction.request_id}}
    return {**wanted([event_id], instruction), **unused}


def done(ids: Sequence[str], action: Action, request_id: str) -> Document:
    """Match those of `ids` to which the request has done this, now or earlier."""
    return {"_id": {"$in": list(ids)}, "history": _entry_of(action, request_id)}


def _entry_of(action: Action, request_id: str) -> Document:
    return {"$elemMatch": {"action": action, "request_id": request_id}}


def update(instruction: Instruction, spread: tuple[datetime, int] | None = None) -> list[Document]:
    """Return the write of an action, on a document that `wanted` matches.

    A replay is due at once or, with `spread` (instant, milliseconds), at random within so many
    milliseconds from that instant, so that what arrives meanwhile gets its turn.
    """
    if instruction.action is Action.CANCEL:
        return [{"$set": {**_cancel(), "history": _with_entry(instruction)}}]
    due: object = "$$NOW"
    if spread is not None:
        start, length_ms = spread
        due = {"$add": [start, {"$toLong": {"$multiply": [{"$rand": {}}, length_ms]}}]}
    return [{"$set": {**_replay(due), "history": _with_entry(instruction)}}]


def _replay(due: object) -> Document:
    untried = {"$eq": [{"$size": "$attempts"}, 0]}
    return {
        "status": {
            "$cond": [untried, {"$literal": Status.RECEIVED}, {"$literal": Status.DELIVERING}]
        },
        "attempts_before": "$attempt_count",
        "next_attempt_at": due,
        "finished_at": "$$REMOVE",
        "buried": "$$REMOVE",
    }


def _cancel() -> Document:
    return {
        "status": {"$cond": [_LEASED, "$status", FINAL_BY_LAST_ATTEMPT]},
        "next_attempt_at": {"$cond": [_LEASED, "$next_attempt_at", "$$REMOVE"]},
        "finished_at": {"$cond": [_LEASED, "$$REMOVE", "$$NOW"]},
        "cancelling": {"$cond": [_LEASED, {"$literal": True}, "$$REMOVE"]},
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


def new_bulk(
    instruction: Instruction,
    *,
    filters: str,
    limit: int | None,
    per_second: float | None,
    matched: int | None,
    now: datetime,
) -> Document:
    """Return the document of a bulk action that nobody works on yet.

    `filters` is the request's own JSON text; only events received before `now` are meant.
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


def free_bulk() -> Document:
    """Match the running bulk actions that no process works on, or none that lives."""
    return {
        "state": "running",
        "$or": [
            {"lease": {"$exists": False}},
            {"$expr": {"$lte": ["$lease.until", "$$NOW"]}},
        ],
    }


def take_bulk(token: str, owner: str, lease_ms: int) -> list[Document]:
    """Lease a bulk action to one process."""
    lease = {
        "token": {"$literal": token},
        "owner": {"$literal": owner},
        "until": {"$add": ["$$NOW", lease_ms]},
    }
    return [{"$set": {"lease": lease}}]


def held_bulk(request_id: str, token: str) -> Document:
    """Match a bulk action only while the lease with this token is on it: the fence."""
    return {"_id": request_id, "lease.token": token}


def plan_chunk(chunk: Document, lease_ms: int) -> list[Document]:
    """Write down which events come next, before any of them is changed; renew the lease.

    Whoever takes the bulk action over finishes this chunk first: after it was carried out half,
    the filters alone would no longer find the same events.
    """
    return [
        {
            "$set": {
                "chunk": {"$literal": chunk},
                "lease.until": {"$add": ["$$NOW", lease_ms]},
            }
        }
    ]


def renew_bulk(lease_ms: int) -> list[Document]:
    """Renew the lease alone: finding the next chunk takes long."""
    return [{"$set": {"lease.until": {"$add": ["$$NOW", lease_ms]}}}]


def finish_chunk(progress: Document, lease_ms: int) -> list[Document]:
    """Write down what the chunk came to, in absolute numbers; renew the lease."""
    return [
        {
            "$set": {
                **{name: {"$literal": value} for name, value in progress.items()},
                "chunk": "$$REMOVE",
                "lease.until": {"$add": ["$$NOW", lease_ms]},
            }
        }
    ]


def end_bulk(failure: str | None = None) -> list[Document]:
    """Return the write that ends a bulk action: done, stopped if asked for, or failed."""
    ended: object = {
        "$cond": [
            {"$eq": ["$stop_requested", True]},
            {"$literal": "stopped"},
            {"$literal": "done"},
        ]
    }
    if failure is not None:
        ended = {"$literal": "failed"}
    return [
        {
            "$set": {
                "state": ended,
                "failure": {"$literal": failure},
                "finished_at": "$$NOW",
                "lease": "$$REMOVE",
            }
        }
    ]
