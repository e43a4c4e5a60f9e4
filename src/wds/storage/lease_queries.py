"""Every filter, pipeline and command of the lease queue, as plain data. Pure.

`lease_queue` executes them, and tests `explain()` them. What must stay true:

* Everything that changes together changes in one write to one document.
* Due times and lease expiries are compared with and computed from `$$NOW`, the database's clock.
* Text from senders and downstreams is wrapped in `$literal` inside a pipeline, so that none of it
  is evaluated as an expression.
* `next_attempt_at` exists exactly while an event is live. While the event is leased it is the
  expiry of the lease, so one predicate finds new events, retries and the leases of dead replicas.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Literal

from pymongo import ASCENDING, UpdateMany, UpdateOne

from wds.domain.deliveries import Attempt, Outcome, Settlement, Status
from wds.storage.collection_names import EVENTS
from wds.storage.event_documents import (
    ATTEMPTS_SINCE_REPLAY,
    FINAL_BY_LAST_ATTEMPT,
    IS_CANCELLING,
    IS_LEASED,
    NO_ANSWER,
    WAITING_STATUS,
    attempt_document,
    last_status_code,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from wds.storage.mongo import Command, Expression, Pipeline, Query

DUE_ORDER = [("next_attempt_at", ASCENDING)]
LOST_ATTEMPT_ERROR = "the dispatcher stopped or stalled before it recorded the outcome"

# -- due -------------------------------------------------------------------------------------


def claimable(destination: str) -> Query:
    """Match the events of `destination` that may be claimed now."""
    return {
        "destination": destination,
        "next_attempt_at": {"$exists": True},
        "$expr": {"$lte": ["$next_attempt_at", "$$NOW"]},
    }


def due_at(destination: str, now: datetime) -> Query:
    """Match the events of `destination` that are due at `now`, a reading of the database's clock.

    For reading and counting, not for claiming. Unlike `claimable`, the claim index alone answers
    it.
    """
    return {"destination": destination, "next_attempt_at": {"$lte": now}}


def peek(destination: str, now: datetime, limit: int) -> Command:
    """Return the command that reads the ids of up to `limit` events due at `now`, in due order."""
    return {
        "find": EVENTS,
        "filter": due_at(destination, now),
        "projection": {"_id": 1},
        "sort": dict(DUE_ORDER),
        "limit": limit,
        "singleBatch": True,
    }


# -- claim -----------------------------------------------------------------------------------


def claim(token: str, owner: str, lease_ms: int, max_attempts: int) -> Pipeline:
    """Return the update that leases a due event, or buries it.

    It buries an event that has had `max_attempts` attempts since it was received or replayed, or
    that was cancelled while it was leased. So no event gets more than `max_attempts`.

    A lease that is still on a due event has expired: the same write records its attempt as
    `unknown`.
    """
    used_up = {"$gte": [ATTEMPTS_SINCE_REPLAY, max_attempts]}
    buries = {"$or": [used_up, IS_CANCELLING]}
    leased: Expression = {
        "status": {"$literal": Status.DELIVERING},
        "attempt_count": {"$add": ["$attempt_count", 1]},
        "next_attempt_at": {"$add": ["$$NOW", lease_ms]},
        "lease": {
            "token": {"$literal": token},
            "owner": {"$literal": owner},
            "since": "$$NOW",
            "due_at": "$next_attempt_at",
            "recovered": {"$cond": [IS_LEASED, {"$literal": True}, "$$REMOVE"]},
        },
    }
    buried: Expression = {
        "status": {"$literal": Status.FAILED_PERMANENTLY},
        "attempt_count": "$attempt_count",
        "buried": {
            "by": {"$literal": token},
            "cancelled": {"$not": [used_up]},
            "lost": IS_LEASED,
        },
        "finished_at": "$$NOW",
    }
    with_lost = {"$concatArrays": ["$attempts", [_LOST_ATTEMPT]]}
    return [
        {
            "$set": {
                "attempts": {"$cond": [IS_LEASED, with_lost, "$attempts"]},
                **{
                    field: {
                        "$cond": [
                            buries,
                            buried.get(field, "$$REMOVE"),
                            leased.get(field, "$$REMOVE"),
                        ]
                    }
                    for field in leased | buried
                },
                "last_status_code": {"$cond": [IS_LEASED, NO_ANSWER, "$last_status_code"]},
                "cancelling": "$$REMOVE",
            }
        }
    ]


_LOST_ATTEMPT: Expression = {
    "attempt_number": "$attempt_count",
    "timestamp": "$lease.since",
    "status_code": {"$literal": None},
    "success": {"$literal": False},
    "outcome": {"$literal": Outcome.UNKNOWN},
    "duration_ms": {"$literal": None},
    "error": {"$literal": LOST_ATTEMPT_ERROR},
    "response": {"$literal": None},
}
"""The `AttemptDocument` of an expired lease."""


def leased_by(ids: list[str], token: str) -> Query:
    """Match those of `ids` that the claim with this token leased."""
    return {"_id": {"$in": ids}, "lease.token": token}


def buried_by(ids: list[str], token: str) -> Query:
    """Match those of `ids` that the claim with this token buried."""
    return {"_id": {"$in": ids}, "buried.by": token}


# -- settle ----------------------------------------------------------------------------------

_Kind = Literal["defer", "retry", "finish", "cancel"]


def fence(ids: list[str], token: str) -> Query:
    """Match those of `ids` that still have the lease with this token.

    Every write that ends a lease matches it, so a dispatcher without the lease changes nothing.
    """
    chosen: object = ids[0] if len(ids) == 1 else {"$in": ids}
    return {"_id": chosen, "lease.token": token}


def settlement_writes(
    settlements: Iterable[Settlement], *, one_by_one: bool = False
) -> list[UpdateOne | UpdateMany]:
    """Return the writes that settle claims: defer, retry or finish.

    One write covers all events that one claim leased and that are settled in the same way: MongoDB
    needs less than half the time of one write each. MongoDB still changes each document atomically,
    but if it refuses one change, it leaves out the rest of that write. `one_by_one` returns one
    write per event.

    A retry matches only an event that no operator has cancelled meanwhile. The settlement that
    makes an event final because it was cancelled matches only a cancelled one.
    """
    alike: defaultdict[tuple[str, _Kind, str], list[Settlement]] = defaultdict(list)
    for each in settlements:
        alike[each.claim.token, _kind(each), each.claim.id if one_by_one else ""].append(each)
    return [_write(token, kind, together) for (token, kind, _), together in alike.items()]


def _kind(settlement: Settlement) -> _Kind:
    if settlement.attempt is None:
        return "defer"
    if settlement.status is Status.DELIVERING:
        return "retry"
    return "cancel" if settlement.cancelled else "finish"


def _write(token: str, kind: _Kind, settlements: list[Settlement]) -> UpdateOne | UpdateMany:
    ids = [each.claim.id for each in settlements]
    attempts = [each.attempt for each in settlements if each.attempt is not None]
    matched = fence(ids, token)
    match kind:
        case "defer":
            changes = _DEFER
        case "retry":
            matched["cancelling"] = {"$exists": False}
            delays_ms = [round(each.delay_s * 1000) for each in settlements]
            changes = {
                **_recorded(ids, attempts),
                "next_attempt_at": {"$add": ["$$NOW", value_by_id(ids, delays_ms)]},
            }
        case "finish" | "cancel":
            if kind == "cancel":
                matched["cancelling"] = True
            changes = {
                **_recorded(ids, attempts),
                "status": value_by_id(ids, [each.status for each in settlements]),
                "finished_at": "$$NOW",
                "next_attempt_at": "$$REMOVE",
                "cancelling": "$$REMOVE",
            }
    write = UpdateOne if len(ids) == 1 else UpdateMany
    return write(matched, [{"$set": changes}], hint="_id_")


_DEFER: Expression = {
    "attempt_count": {"$subtract": ["$attempt_count", 1]},
    "next_attempt_at": {"$cond": [IS_CANCELLING, "$$REMOVE", "$lease.due_at"]},
    "lease": "$$REMOVE",
    "status": {"$cond": [IS_CANCELLING, FINAL_BY_LAST_ATTEMPT, WAITING_STATUS]},
    "finished_at": {"$cond": [IS_CANCELLING, "$$NOW", "$$REMOVE"]},
    "cancelling": "$$REMOVE",
}
"""Undo a claim: the due time is the one from before it, and the attempt is not counted."""


def _recorded(ids: list[str], attempts: list[Attempt]) -> Expression:
    """Return the changes that record these attempts, one per id, and end the lease."""
    documents = [attempt_document(each) for each in attempts]
    return {
        "attempts": {"$concatArrays": ["$attempts", [value_by_id(ids, documents)]]},
        "last_status_code": value_by_id(ids, [last_status_code(each) for each in attempts]),
        "lease": "$$REMOVE",
    }


def value_by_id(ids: list[str], values: Sequence[object]) -> Expression:
    """Return the expression for the value at the position of the event's id in `ids`.

    MongoDB evaluates nothing inside the values.
    """
    if all(each == values[0] for each in values):
        return {"$literal": values[0]}
    position = {"$indexOfArray": [{"$literal": ids}, "$_id"]}
    return {"$arrayElemAt": [{"$literal": values}, position]}


def settled_by(settlements: Iterable[Settlement]) -> Query:
    """Match the events in which the attempt of one of these settlements is stored.

    One claim at a time holds an attempt number, and only that claim records a known outcome for it.
    So the number together with a known outcome identifies the write.
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
