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

from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pymongo import ASCENDING, UpdateMany, UpdateOne

from wds.domain.deliveries import Attempt, Outcome, Settlement, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wds.domain.events import NewEvent

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


def due(destination: str) -> Document:
    """Match the events of `destination` that may be claimed now."""
    return {
        "destination": destination,
        "next_attempt_at": {"$exists": True},
        "$expr": {"$lte": ["$next_attempt_at", "$$NOW"]},
    }


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


_EVER = datetime(9999, 12, 31, tzinfo=UTC)


def due_by(destination: str, now: datetime) -> Document:
    """Match what is due by a reading of the database's clock: to look at and count, not to claim.

    Unlike `due` it is answered from the claim index alone.
    """
    return {"destination": destination, "next_attempt_at": {"$lte": now}}


def earliest(destination: str) -> Document:
    """Return the command that reads when the first event of those that are not final is due."""
    return {
        "find": EVENTS,
        "filter": due_by(destination, _EVER),
        "projection": {"_id": 0, "next_attempt_at": 1},
        "sort": dict(DUE_ORDER),
        "limit": 1,
        "singleBatch": True,
    }


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
replays and returned leases. Not of claims, which set a lease together with its expiry; but for some
that take over from an expired one, of whose lease only parts are new."""


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


def held(event_ids: list[str], token: str) -> Document:
    """Match those of these events that the lease with this token is on: the fence."""
    chosen: object = event_ids[0] if len(event_ids) == 1 else {"$in": event_ids}
    return {"_id": chosen, "lease.token": token}


def settlements(
    settlements: Iterable[Settlement], *, apart: bool = False
) -> list[UpdateOne | UpdateMany]:
    """Return the writes that end claims: finish, retry later, or defer.

    One for all events that one claim leased and that end alike: MongoDB takes less than half as
    long for it as for one each. Each event's document still changes in one write of its own, or
    not at all; where MongoDB refuses one, though, it does not go on with the others. `apart`
    makes one write for each event.

    Retrying later is only for an event that nobody has cancelled meanwhile, ending it because
    it was cancelled only for one that is.
    """
    alike: defaultdict[tuple[str, _End, str], list[Settlement]] = defaultdict(list)
    for each in settlements:
        alike[each.claim.token, _end(each), each.claim.id if apart else ""].append(each)
    return [_write(token, end, together) for (token, end, _), together in alike.items()]


_End = Literal["defer", "retry", "finish", "cancel"]


def _end(settlement: Settlement) -> _End:
    if settlement.attempt is None:
        return "defer"
    if settlement.status is Status.DELIVERING:
        return "retry"
    return "cancel" if settlement.cancelled else "finish"


def _write(token: str, end: _End, settlements: list[Settlement]) -> UpdateOne | UpdateMany:
    ids = [each.claim.id for each in settlements]
    attempts = [each.attempt for each in settlements if each.attempt is not None]
    fence = held(ids, token)
    match end:
        case "defer":
            changes = _DEFER
        case "retry":
            fence["cancelling"] = {"$exists": False}
            delays_ms = [round(each.delay_s * 1000) for each in settlements]
            changes = {
                **_recorded(ids, attempts),
                "next_attempt_at": {"$add": ["$$NOW", _beside(ids, delays_ms)]},
            }
        case "finish" | "cancel":
            if end == "cancel":
                fence["cancelling"] = True
            changes = {
                **_recorded(ids, attempts),
                "status": _beside(ids, [each.status for each in settlements]),
                "finished_at": "$$NOW",
                "next_attempt_at": "$$REMOVE",
                "cancelling": "$$REMOVE",
            }
    kind = UpdateOne if len(ids) == 1 else UpdateMany
    return kind(fence, [{"$set": changes}], hint="_id_")


def _recorded(ids: list[str], attempts: list[Attempt]) -> Document:
    """Return the changes that record these attempts, one for each id, and give the lease back."""
    documents = [attempt_document(each) for each in attempts]
    return {
        "attempts": {"$concatArrays": ["$attempts", [_beside(ids, documents)]]},
        "last_status_code": _beside(ids, [_status_code(each) for each in attempts]),
        "lease": "$$REMOVE",
    }


def _beside(ids: list[str], values: Sequence[object]) -> Document:
    """Return the expression for what lies beside an event's id. Nothing in it is evaluated."""
    if all(each == values[0] for each in values):
        return {"$literal": values[0]}
    place = {"$indexOfArray": [{"$literal": ids}, "$_id"]}
    return {"$arrayElemAt": [{"$literal": values}, place]}


_WAITING = {
    "$cond": [
        {"$eq": [{"$size": "$attempts"}, 0]},
        {"$literal": Status.RECEIVED},
        {"$literal": Status.DELIVERING},
    ]
}
_DEFER: Document = {
    "attempt_count": {"$subtract": ["$attempt_count", 1]},
    "next_attempt_at": {"$cond": [CANCELLING, "$$REMOVE", "$lease.due_at"]},
    "lease": "$$REMOVE",
    "status": {"$cond": [CANCELLING, FINAL_BY_LAST_ATTEMPT, _WAITING]},
    "finished_at": {"$cond": [CANCELLING, "$$NOW", "$$REMOVE"]},
    "cancelling": "$$REMOVE",
}
"""Undo a claim: due since when it was before, the attempt not counted."""


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


SETTLED_PROJECTION = {
    "status": 1,
    "attempt_count": 1,
    "attempts.attempt_number": 1,
    "attempts.outcome": 1,
}


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
