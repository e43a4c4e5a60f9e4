"""Deliveries: an event on its way to a destination, its claims, attempts and settlements. Pure.

Types that are created once per delivery are `msgspec.Struct`s: a frozen dataclass takes six to
twelve times as long to create.

State machine of an event (`status`):

    RECEIVED ──claim──▶ DELIVERING ──2xx──────────────▶ DELIVERED
        ▲                │  ▲   │
        └─defer (never   │  └───┘ failure, attempts left: due again after a delay
          attempted)     └──failure or lost lease, none left──▶ FAILED_PERMANENTLY

The two states on the right are final: the event has no lease and is not due again. A replay by an
operator makes it live again: DELIVERING (RECEIVED if it was never attempted), with the retry
schedule from its start. A cancel stops the retries: the event becomes final at once or, if
it is leased, when that lease ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime


class Status(StrEnum):
    """The state of an event. Only the storage changes it."""

    RECEIVED = "RECEIVED"
    DELIVERING = "DELIVERING"
    DELIVERED = "DELIVERED"
    FAILED_PERMANENTLY = "FAILED_PERMANENTLY"


LIVE_STATUSES = (Status.RECEIVED, Status.DELIVERING)
"""An event in one of these has a `next_attempt_at`; the others are final."""


class Outcome(StrEnum):
    """The result of one attempt."""

    SUCCESS = "success"
    FAILURE = "failure"
    UNKNOWN = "unknown"
    """The dispatcher died or stalled between claiming the event and recording a result."""


def attempts_since_replay(attempt_count: int, attempts_before: int) -> int:
    """Return the attempts since the event was received or last replayed.

    The retry schedule and the limit of attempts count these. An attempt under way is included.

    Args:
        attempt_count: the attempts of the event in all.
        attempts_before: the attempts that the event had at its last replay, 0 without one.
    """
    return attempt_count - attempts_before


class Claim(Struct, frozen=True):
    """The right to make one attempt, until the lease expires.

    Attributes:
        token: every write under this claim matches it, so a write after the lease was lost changes
            nothing (the fence).
        attempt_number: 1 for the event's first attempt; a replay does not reset it.
        leased_at: when the lease began, by the database's clock.
        held_since: `time.monotonic()` when this process learned of the lease; never before
            `leased_at`.
        trusted_until: the reading of `storage.mongo.uptime()` after which this process must not
            send. It is earlier than the expiry of the lease (`storage.lease_queue`).
        waited_s: seconds from when the event was due, or its lost lease expired, to the claim.
        recovered: True if the claim took over an expired lease, whose attempt is now `unknown`.
        trace: the trace context stored with the event; None if tracing was off at ingest.
        attempts_before: the attempts that the event had at its last replay, 0 without one.
    """

    id: str
    token: str
    attempt_number: int
    leased_at: datetime
    held_since: float
    trusted_until: float
    destination: str
    event_type: str | None
    content_type: str
    payload: bytes
    waited_s: float = 0.0
    recovered: bool = False
    trace: Mapping[str, str] | None = None
    attempts_before: int = 0

    @property
    def schedule_step(self) -> int:
        """Return the position of this attempt in the retry schedule, from 1."""
        return attempts_since_replay(self.attempt_number, self.attempts_before)


@dataclass(frozen=True, slots=True)
class Claimed:
    """The result of one `LeaseQueue.claim`.

    Attributes:
        claims: the leases that the caller now holds.
        recovered: the number of `claims` that took over an expired lease.
        exhausted_ids: the events that had no attempt left. The claim buried them: they are
            FAILED_PERMANENTLY.
        cancelled_ids: the events that had attempts left but were cancelled while an earlier lease
            was on them. The claim buried them too.
        lost_ids: the buried events whose lease had expired; its attempt is now `unknown`. The other
            exhausted events had used all attempts of a limit that has been lowered since.
        others_were_first: True if the claim saw due events and other replicas leased all of them
            first.

        buried_unread: the number of events that the claim buried without learning which and why,
            because the read of them failed. They are in none of the lists.

    After a lost answer the claim knows of no buried events at all.
    """

    claims: list[Claim]
    recovered: int = 0
    exhausted_ids: Sequence[str] = ()
    cancelled_ids: Sequence[str] = ()
    lost_ids: Sequence[str] = ()
    buried_unread: int = 0
    others_were_first: bool = False


class Attempt(Struct, frozen=True):
    """The record of one attempt; immutable once stored.

    Attributes:
        timestamp: when the request began, by the database's clock: the start of the lease plus
            the time since this process held it. Early by up to one round trip of the claim.
        status_code: the status of the answer, None without an answer.
        duration_ms: milliseconds from sending to the end of the answer.
        error: why the attempt failed, None on success.
        response: the first KiB of the answer's body as text, None without an answer.
    """

    attempt_number: int
    timestamp: datetime
    outcome: Outcome
    status_code: int | None
    duration_ms: int
    error: str | None
    response: str | None


class Settlement(Struct, frozen=True):
    """How a claim is settled: deferred, to be retried, delivered, or failed permanently.

    Attributes:
        attempt: the attempt to record. None defers: the lease is released and no attempt is
            counted.
        status: DELIVERED or FAILED_PERMANENTLY ends the event; DELIVERING retries it.
        delay_s: seconds from the write until the next attempt, if `status` is DELIVERING.
        cancelled: True if the event ends only because an operator cancelled it.
    """

    claim: Claim
    attempt: Attempt | None
    status: Status = Status.DELIVERING
    delay_s: float = 0.0
    cancelled: bool = False
