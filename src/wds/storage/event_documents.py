"""The stored event, field by field: who sets each field, who changes it, and when. Pure.

Each change of state is one write to one document. The writers are:

* **insert**: `event_writer`, once, when the event is accepted;
* **claim**: `lease_queries.claim`, which leases a due event or buries it;
* **settle**: `lease_queries.settlement_writes`, which ends a lease: *defer*, *retry*, *finish*;
* **replay** and **cancel**: `action_queries.update`, on behalf of an operator;
* **expiry**: MongoDB's TTL index on `finished_at` (`retention`), which deletes the document.

A field marked `NotRequired` is absent, not null, where it does not apply: partial indexes depend on
that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NotRequired, TypedDict

from wds.domain.deliveries import Attempt, Outcome, Status

if TYPE_CHECKING:
    from datetime import datetime

    from wds.domain.events import NewEvent
    from wds.domain.operator_actions import Action
    from wds.storage.mongo import Expression

NO_ANSWER = 0
"""`last_status_code` if the last attempt got no answer; before the first, the field is absent."""


class AttemptDocument(TypedDict):
    """One attempt in `EventDocument.attempts`. Never changes once written.

    Written by settle from the dispatcher's `Attempt` or, for an attempt that was lost, by the claim
    that finds the lease expired. A lost attempt has the outcome `unknown`, and null in the fields
    that only its dispatcher knew.
    """

    attempt_number: int
    """Consecutive from 1; a replay does not reset it."""
    timestamp: datetime
    """When the request began, by the database's clock; of a lost attempt, when its lease began."""
    status_code: int | None
    """The status of the answer; null without an answer."""
    success: bool
    """True exactly if `outcome` is `success`."""
    outcome: Outcome
    duration_ms: int | None
    """From sending to the end of the answer; null if the attempt was lost."""
    error: str | None
    """Why the attempt failed; null on success."""
    response: str | None
    """The first KiB of the answer's body as text; null without an answer."""


class LeaseDocument(TypedDict):
    """The right of one dispatcher to make one attempt.

    Set whole by claim, removed whole by settle or by the next claim. When it expires is in
    `EventDocument.next_attempt_at`.
    """

    token: str
    """Random, new for each claim; settle matches it (the fence)."""
    owner: str
    """The replica that holds the lease, for people and for `check`."""
    since: datetime
    """When the lease began: `$$NOW` of the claim."""
    due_at: datetime
    """The event's `next_attempt_at` before the claim; a defer restores it."""
    recovered: NotRequired[bool]
    """True if this claim took over an expired lease, otherwise absent."""


class BuriedDocument(TypedDict):
    """Why a claim buried the event instead of leasing it."""

    by: str
    """The token of that claim, by which it finds the events that it buried."""
    cancelled: bool
    """True if attempts were left and the event was buried only because it was cancelled."""
    lost: bool
    """True if an expired lease was on the event, whose attempt is now recorded as `unknown`."""


class HistoryDocument(TypedDict):
    """One replay or cancel of the event. Never changes once written."""

    action: Action
    at: datetime
    """`$$NOW` of the write."""
    by: str
    """The operator."""
    remote: str
    """The address that the request came from."""
    reason: str | None
    request_id: str
    """The id under which a repeat of the request recognises that it is done."""
    status: Status
    """The status before the action."""
    attempt_count: int
    """The `attempt_count` before the action."""


class EventDocument(TypedDict):
    """One document of the collection `events`."""

    # Set by insert. Never changed.

    _id: str
    """Derived from source and idempotency key, else random: `domain.events`."""
    source: str
    event_type: str | None
    content_type: str
    headers: dict[str, str]
    """The request headers that are kept."""
    payload: bytes
    """The body exactly as it was received."""
    payload_sha256: bytes
    """Differs if another payload arrives under the same idempotency key."""
    received_at: datetime
    """By the database's clock."""
    destination: str
    idempotency_key: NotRequired[str]
    """Absent if the sender gave none."""
    trace: NotRequired[dict[str, str]]
    """`traceparent` and `tracestate` of the request; absent if tracing was off."""

    # Set by insert. Changed by claim, settle and operators.

    status: Status
    """RECEIVED on insert. Claim: DELIVERING, or FAILED_PERMANENTLY if it buries the event. Retry:
    no change. Finish: a final status. Defer and replay: `WAITING_STATUS`. Cancel, unless the event
    is leased: `FINAL_BY_LAST_ATTEMPT`; if it is leased, the write that ends the lease sets the
    final status.
    """
    attempt_count: int
    """Attempts begun. 0 on insert; claim adds 1 if it leases the event; defer subtracts 1. Equal to
    the length of `attempts`, or one more while the event is leased. A replay does not reset it.
    """
    attempts: list[AttemptDocument]
    """Empty on insert. Retry and finish append the attempt; claim appends a lost one."""
    next_attempt_at: NotRequired[datetime]
    """When a claim may take the event; exists exactly while the event is live. Insert:
    `received_at`. Claim: the expiry of the lease. Defer: `lease.due_at`. Retry: `$$NOW` plus the
    delay. Replay: `$$NOW`, or later for a bulk replay that is spread. Removed by finish, bury and
    cancel; a cancel of a leased event leaves it.
    """

    # Absent on insert.

    lease: NotRequired[LeaseDocument]
    """Set by claim, removed by settle and by a claim that buries. On a due event, it has
    expired."""
    attempts_before: NotRequired[int]
    """`attempt_count` at the last replay, set by replay. The retry schedule and the limit of
    attempts are counted from it: `ATTEMPTS_SINCE_REPLAY`. Absent if there was no replay.
    """
    last_status_code: NotRequired[int]
    """`status_code` of the last attempt, `NO_ANSWER` if that is null. Set whenever an attempt is
    appended.
    """
    cancelling: NotRequired[bool]
    """True if an operator cancelled the event while it was leased. Set by cancel, removed
    by the write that ends the lease and makes the event final.
    """
    buried: NotRequired[BuriedDocument]
    """Set by a claim that buries the event, removed by replay."""
    finished_at: NotRequired[datetime]
    """`$$NOW` of the write that made the status final; exists exactly while it is. Removed by
    replay. The TTL index deletes the document when the retention period after it is over.
    """
    history: NotRequired[list[HistoryDocument]]
    """Replay and cancel append to it; absent before the first."""


def event_document(event: NewEvent, now: datetime) -> EventDocument:
    """Return the document to insert for a new event, due at `now` (database time)."""
    document: EventDocument = {
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


def attempt_document(attempt: Attempt) -> AttemptDocument:
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


def last_status_code(attempt: Attempt) -> int:
    """Return the `last_status_code` of an event whose last attempt is this one."""
    return NO_ANSWER if attempt.status_code is None else attempt.status_code


# -- projections: what a reader of the queue needs -------------------------------------------

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
"""The fields that a `Claim` is built from, and those that a leased and a buried event differ in."""

SETTLED_PROJECTION = {
    "status": 1,
    "attempt_count": 1,
    "attempts.attempt_number": 1,
    "attempts.outcome": 1,
}
"""The fields that show how a claim was settled."""

STORED_PROJECTION = {"payload_sha256": 1, "status": 1, "received_at": 1}
"""The fields in which a repeat and a conflict differ."""

# -- expressions over a stored event, for pipelines ------------------------------------------

ATTEMPTS_SINCE_REPLAY: Expression = {
    "$subtract": ["$attempt_count", {"$ifNull": ["$attempts_before", 0]}]
}
"""`domain.deliveries.attempts_since_replay` of the event."""

IS_LEASED: Expression = {"$ne": [{"$type": "$lease"}, "missing"]}
"""A lease is on the event; on a due event, it has expired."""

IS_CANCELLING: Expression = {"$eq": ["$cancelling", True]}
"""An operator cancelled the event while it was leased: the write that ends the lease makes it
final."""

WAITING_STATUS: Expression = {
    "$cond": [
        {"$eq": [{"$size": "$attempts"}, 0]},
        {"$literal": Status.RECEIVED},
        {"$literal": Status.DELIVERING},
    ]
}
"""The status of a live event without a lease: RECEIVED until an attempt is stored."""

FINAL_BY_LAST_ATTEMPT: Expression = {
    "$cond": [
        {"$eq": [{"$last": "$attempts.success"}, True]},
        {"$literal": Status.DELIVERED},
        {"$literal": Status.FAILED_PERMANENTLY},
    ]
}
"""The status of an event that is cancelled between attempts. DELIVERED if the last attempt
succeeded: the event had been replayed after a delivery, and the cancel undoes the replay."""
