"""Every MongoDB document, filter, update and pipeline of the queue, as plain data. Pure.

`store` executes them; tests explain() them. What must stay true:

* Everything that changes together changes in one single-document write.
* Due times and lease expiry are compared with and computed from `$$NOW`, the database's clock.
* Whatever a sender or a downstream wrote is wrapped in `$literal` inside a pipeline, so no
  text can act as an expression.
* `next_attempt_at` exists exactly while an event is live. Leased, it is the lease's expiry, so
  one predicate finds new events, retries and the leases of the dead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymongo import ASCENDING, UpdateOne

from wds.model import Attempt, NewEvent, Outcome, Settlement, Status

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

Document = dict[str, Any]

EVENTS = "events"
FLEET = "fleet"
LOGOUTS = "logouts"

CLAIM_PROJECTION = {
    "payload": 1,
    "content_type": 1,
    "destination": 1,
    "event_type": 1,
    "attempt_count": 1,
    "attempts_before": 1,
    "lease": 1,
    "buried": 1,
    "trace": 1,
}
"""What a dispatcher needs of an event it claims."""
DUE_ORDER = [("next_attempt_at", ASCENDING)]

CANCELLING = {"$eq": ["$cancelling", True]}
"""An operator cancelled the event while it was leased: what ends the lease ends the event."""
FINAL_BY_LAST_ATTEMPT = {
    "$cond": [
        {"$eq": [{"$last": "$attempts.success"}, True]},
        {"$literal": Status.DELIVERED},
        {"$literal": Status.FAILED_PERMANENTLY},
    ]
}
"""How an event ends that is stopped between attempts: a replay of a delivered one, not yet
attempted, is undone by that."""
NO_ANSWER = 0
"""`last_status_code` where the last attempt got no answer; the field is absent before any."""
LOST_ATTEMPT_ERROR = "the dispatcher stopped or stalled before it recorded the outcome"


def event_document(event: NewEvent, now: datetime) -> Document:
    """Return what is inserted for a new event, due at `now` (database time)."""
    document: Document = {
        "_id": event.id,
        "source": event.source,
        "event_type": event.event_type,
        "content_type": event.content_type,
        "headers": dict(event.headers),
        "payload": event.payload,
        "payload_sha256": event.payload_sha256,
        "received_at": now,
        "destination": event.destination,
        "status": Status.RECEIVED,
        "attempt_count": 0,
        "next_attempt_at": now,
        "attempts": [],
    }
    if event.idempotency_key is not None:
        document["idempotency_key"] = event.idempotency_key
    if event.trace is not None:
        document["trace"] = dict(event.trace)
    return document


def live(destination: str) -> Document:
    """Match the events of `destination` that are not final, due or not."""
    return {"destination": destination, "next_attempt_at": {"$exists": True}}


def due(destination: str) -> Document:
    """Match the events of `destination` that may be claimed now."""
    return {**live(destination), "$expr": {"$lte": ["$next_attempt_at", "$$NOW"]}}


def peek(destination: str, now: datetime, limit: int) -> Document:
    """Return the command that reads the ids of up to `limit` events due by `now`, in due order."""
    return {
        "find": EVENTS,
        "filter": due_by(destination, now),
        "projection": {"_id": 1},
        "sort": dict(DUE_ORDER),
        "limit": limit,
        "singleBatch": True,
    }


def due_by(destination: str, now: datetime) -> Document:
    """Match what is due by a reading of the database's clock: to look at and count, not to claim.

    Unlike `due` it is answered from the claim index alone.
    """
    return {"destination": destination, "next_attempt_at": {"$lte": now}}


STREAM: Document = {
    "aggregate": EVENTS,
    "pipeline": [
        {"$changeStream": {}},
        {
            "$match": {
                "$or": [
                    {"operationType": "insert"},
                    {
                        "updateDescription.updatedFields.next_attempt_at": {"$exists": True},
                        "updateDescription.updatedFields.lease": {"$exists": False},
                    },
                ]
            }
        },
        {"$project": {"_id": 1}},
    ],
    "cursor": {},
}
"""The command that begins a change stream of what may have become due: new events, retries,
replays and returned leases. Not of claims, which set a lease together with its expiry."""


def next_changes(cursor: int, most_ms: int) -> Document:
    """Return the command that waits for the next changes of a stream, for `most_ms` at most."""
    return {"getMore": cursor, "collection": EVENTS, "maxTimeMS": most_ms}


def end_stream(cursor: int) -> Document:
    """Return the command that ends a stream; of one that is gone MongoDB says so in its answer."""
    return {"killCursors": EVENTS, "cursors": [cursor]}


def claim(token: str, owner: str, lease_ms: int, max_attempts: int) -> list[Document]:
    """Lease a due event, or bury it if it has no attempt left.

    A lease still present on a due event has expired: its attempt is recorded as unknown in
    the same write. `lease.due_at` keeps the place in the queue, should the claim be deferred.
    An event already at `max_attempts` since it was received or replayed, or cancelled while it
    was leased, gets no lease and becomes FAILED_PERMANENTLY, so a claim never starts one attempt
    too many. `lease.recovered` is present (and true) only where this claim took over from an
    expired lease. `buried` says which claim ended the event, whether for a cancel alone, and
    whether an attempt was lost.
    """
    expired = {"$ne": [{"$type": "$lease"}, "missing"]}
    made = {"$subtract": ["$attempt_count", {"$ifNull": ["$attempts_before", 0]}]}
    used_up = {"$gte": [made, max_attempts]}
    exhausted = {"$or": [used_up, CANCELLING]}
    lost = {
        "attempt_number": "$attempt_count",
        "timestamp": "$lease.since",
        "status_code": {"$literal": None},
        "success": {"$literal": False},
        "outcome": {"$literal": Outcome.UNKNOWN},
        "duration_ms": {"$literal": None},
        "error": {"$literal": LOST_ATTEMPT_ERROR},
        "response": {"$literal": None},
    }
    lease = {
        "token": {"$literal": token},
        "owner": {"$literal": owner},
        "since": "$$NOW",
        "due_at": "$next_attempt_at",
        "recovered": {"$cond": [expired, {"$literal": True}, "$$REMOVE"]},
    }
    burial = {"by": {"$literal": token}, "cancelled": {"$not": [used_up]}, "lost": expired}
    return [
        {
            "$set": {
                "attempts": {
                    "$cond": [expired, {"$concatArrays": ["$attempts", [lost]]}, "$attempts"]
                },
                "status": {
                    "$cond": [
                        exhausted,
                        {"$literal": Status.FAILED_PERMANENTLY},
                        {"$literal": Status.DELIVERING},
                    ]
                },
                "attempt_count": {"$add": ["$attempt_count", {"$cond": [exhausted, 0, 1]}]},
                "next_attempt_at": {
                    "$cond": [exhausted, "$$REMOVE", {"$add": ["$$NOW", lease_ms]}]
                },
                "lease": {"$cond": [exhausted, "$$REMOVE", lease]},
                "buried": {"$cond": [exhausted, burial, "$$REMOVE"]},
                "finished_at": {"$cond": [exhausted, "$$NOW", "$$REMOVE"]},
                "last_status_code": {"$cond": [expired, NO_ANSWER, "$last_status_code"]},
                "cancelling": "$$REMOVE",
            }
        }
    ]


def buried(ids: list[str], token: str) -> Document:
    """Match those of `ids` that the claim with this token ended instead of leasing them."""
    return {"_id": {"$in": ids}, "buried.by": token}


def held(event_id: str, token: str) -> Document:
    """Match the event only while the lease with this token is on it: the fence."""
    return {"_id": event_id, "lease.token": token}


def settlement(settlement: Settlement) -> UpdateOne:
    """Return the one write that ends a claim: finish, retry later, or defer.

    Retrying later is only for an event that nobody has cancelled meanwhile, ending it because
    it was cancelled only for one that is.
    """
    fence = held(settlement.claim.id, settlement.claim.token)
    if settlement.cancelled:
        fence["cancelling"] = True
    if settlement.attempt is None:
        return UpdateOne(fence, _defer())
    attempt = attempt_document(settlement.attempt)
    if settlement.status is Status.DELIVERING:
        delay_ms = round(settlement.delay_s * 1000)
        return UpdateOne(
            {**fence, "cancelling": {"$exists": False}},
            _retry(attempt, _status_code(settlement.attempt), delay_ms),
        )
    return UpdateOne(
        fence,
        {
            "$push": {"attempts": attempt},
            "$set": {
                "status": settlement.status,
                "last_status_code": _status_code(settlement.attempt),
            },
            "$currentDate": {"finished_at": True},
            "$unset": {"lease": "", "next_attempt_at": "", "cancelling": ""},
        },
    )


def attempt_document(attempt: Attempt) -> Document:
    """Return the record of an attempt as stored in `attempts`."""
    return {
        "attempt_number": attempt.attempt_number,
        "timestamp": attempt.timestamp,
        "status_code": attempt.status_code,
        "success": attempt.outcome is Outcome.SUCCESS,
        "outcome": attempt.outcome,
        "duration_ms": attempt.duration_ms,
        "error": attempt.error,
        "response": attempt.response,
    }


def _status_code(attempt: Attempt) -> int:
    return NO_ANSWER if attempt.status_code is None else attempt.status_code


def _retry(attempt: Document, status_code: int, delay_ms: int) -> list[Document]:
    """Wait for the next attempt."""
    return [
        {
            "$set": {
                "attempts": {"$concatArrays": ["$attempts", [{"$literal": attempt}]]},
                "last_status_code": status_code,
                "next_attempt_at": {"$add": ["$$NOW", delay_ms]},
                "lease": "$$REMOVE",
            }
        }
    ]


def _defer() -> list[Document]:
    """Undo a claim: due since when it was before, the attempt not counted."""
    waiting = {
        "$cond": [
            {"$eq": [{"$size": "$attempts"}, 0]},
            {"$literal": Status.RECEIVED},
            {"$literal": Status.DELIVERING},
        ]
    }
    return [
        {
            "$set": {
                "attempt_count": {"$subtract": ["$attempt_count", 1]},
                "next_attempt_at": {"$cond": [CANCELLING, "$$REMOVE", "$lease.due_at"]},
                "lease": "$$REMOVE",
                "status": {"$cond": [CANCELLING, FINAL_BY_LAST_ATTEMPT, waiting]},
                "finished_at": {"$cond": [CANCELLING, "$$NOW", "$$REMOVE"]},
                "cancelling": "$$REMOVE",
            }
        }
    ]


def settled(settlements: Sequence[Settlement]) -> Document:
    """Match the events whose attempt, as recorded, is the one being settled.

    An attempt number is held by one claim at a time and only that claim records a known
    outcome for it, so the number and a known outcome identify the write.
    """
    return {
        "$or": [
            {
                "_id": each.claim.id,
                "attempts": {
                    "$elemMatch": {
                        "attempt_number": each.attempt.attempt_number,
                        "outcome": {"$ne": Outcome.UNKNOWN},
                    }
                },
            }
            for each in settlements
            if each.attempt is not None
        ]
    }


def heartbeat(replica: Document, last: Document | None, forget_after_ms: int) -> list[Document]:
    """Put one replica's report into the fleet document, and fold in those long silent.

    `replica` is `{owner, role, totals}`. Totals are absolute, so a repeated write changes
    nothing; a replica unheard for `forget_after_ms` leaves the list and its totals move to
    `retired`, in this same write. `last` is what this replica reported before, if it did: when
    it was folded in meanwhile, that is taken out of `retired` again.
    """
    owner = {"$literal": replica["owner"]}
    everyone = {"$ifNull": ["$replicas", []]}
    silent = {"$lt": ["$$each.seen_at", {"$subtract": ["$$NOW", forget_after_ms]}]}
    others = {"$ne": ["$$each.owner", owner]}
    folded = {"$not": [{"$in": [owner, {"$ifNull": ["$replicas.owner", []]}]}]}
    mine = {"$mergeObjects": [{"$literal": replica}, {"seen_at": "$$NOW"}]}

    def pick(condition: Document) -> Document:
        return {"$filter": {"input": everyone, "as": "each", "cond": condition}}

    return [
        {
            "$set": {
                "retired": {
                    name: {
                        "$add": [
                            {"$ifNull": [f"$retired.{name}", 0]},
                            {"$cond": [folded, -(last or {}).get(name, 0), 0]},
                            {
                                "$sum": {
                                    "$map": {
                                        "input": pick({"$and": [others, silent]}),
                                        "as": "each",
                                        "in": f"$$each.totals.{name}",
                                    }
                                }
                            },
                        ]
                    }
                    for name in replica["totals"]
                },
                "replicas": {
                    "$concatArrays": [pick({"$and": [others, {"$not": [silent]}]}), [mine]]
                },
            }
        }
    ]


def fleet_now() -> list[Document]:
    """Read the fleet document with the database's time beside it, to judge `seen_at` by."""
    return [{"$match": {"_id": FLEET}}, {"$set": {"now": "$$NOW"}}]
