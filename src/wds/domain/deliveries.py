"""Deliveries: an event on its way to a destination, its claims, attempts and how they end. Pure.

What is made anew for each delivery is a `msgspec.Struct`; a frozen dataclass takes six to twelve
times as long.

State machine of an event (`status`):

    RECEIVED ──claim──▶ DELIVERING ──2xx──────────────▶ DELIVERED
        ▲                │  ▲   │
        └─defer (never   │  └───┘ failure, attempts left: waits for its next attempt
          attempted)     └──failure or lost lease, none left──▶ FAILED_PERMANENTLY

The two on the right are final: such an event has no lease and is not due again, unless an
operator replays it: then it is DELIVERING once more (RECEIVED, if it was never attempted) with
the whole retry schedule before it. A cancelled event has its retries stopped: it is final at
once, or as soon as the attempt under way is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from typing import Any


class Status(StrEnum):
    """Where an event stands. Only the store changes it."""

    RECEIVED = "RECEIVED"
    DELIVERING = "DELIVERING"
    DELIVERED = "DELIVERED"
    FAILED_PERMANENTLY = "FAILED_PERMANENTLY"


LIVE_STATUSES = (Status.RECEIVED, Status.DELIVERING)
"""An event in one of these has a `next_attempt_at`; the others are final."""


class Outcome(StrEnum):
    """What is known of one attempt."""

    SUCCESS = "success"
    FAILURE = "failure"
    UNKNOWN = "unknown"
    """The dispatcher died or stalled between claiming the event and recording a result."""


class Claim(Struct, frozen=True):
    """The right to make one attempt, until the lease expires.

    Attributes:
        token: fences every write that follows from this claim.
        attempt_number: 1 for the event's first; goes on counting after a replay.
        leased_at: when the lease began, by the database's clock.
        held_since: `time.monotonic()` when this process learned of it, not before `leased_at`.
        trusted_until: `mongo.uptime()` after which this process must no longer send. It
            counts from before the claim was asked for, so it ends before the lease does.
        waited_s: seconds from when the event was due, or a lost lease expired, to the claim.
        recovered: True if it took over from an expired lease, whose attempt is now `unknown`.
        trace: as stored with the event, None if tracing was off then.
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
    """Attempts made before the last replay; the retry schedule began anew after them."""

    @property
    def schedule_step(self) -> int:
        """Return the place of this attempt in the retry schedule, from 1."""
        return self.attempt_number - self.attempts_before


@dataclass(frozen=True, slots=True)
class Claimed:
    """What one claim brought.

    Attributes:
        claims: the leases now held.
        recovered: how many of these had an expired lease, now recorded as an unknown attempt.
        buried: how many had no attempt left and are now FAILED_PERMANENTLY.
        buried_ids: which, to be looked up; not known if the claim's answer was lost.
        cancelled_ids: those that had attempts left, but were cancelled while they were leased:
            FAILED_PERMANENTLY, too, and not among the buried.
        lost: how many of those two had an expired lease, now recorded as an unknown attempt; the
            others waited for an attempt that a lower limit does not allow.
        outrun: whether it saw due events and others were faster with all of them.
    """

    claims: list[Claim]
    recovered: int = 0
    buried: int = 0
    buried_ids: Sequence[str] = ()
    cancelled_ids: Sequence[str] = ()
    lost: int = 0
    outrun: bool = False


class Attempt(Struct, frozen=True):
    """The record of one attempt; immutable once stored.

    Attributes:
        timestamp: when the request began, by the database's clock: the lease's start plus the
            time since this process held it, so at most the claim's round trip too early.
        status_code: of the answer, None if there was none.
        duration_ms: from sending to the end of the answer.
        error: why it failed, None on success.
        response: first KiB of the answer's body as text, None if there was no answer.
    """

    attempt_number: int
    timestamp: datetime
    outcome: Outcome
    status_code: int | None
    duration_ms: int
    error: str | None
    response: str | None


class Settlement(Struct, frozen=True):
    """How a claim ends. Exactly one of four, see the constructors' callers in `dispatcher`.

    Attributes:
        attempt: what to record; None defers: the lease is returned and nothing is counted.
        status: DELIVERED or FAILED_PERMANENTLY ends the event; DELIVERING waits for another try.
        delay_s: seconds from the write until the next attempt, when status is DELIVERING.
        cancelled: there would be another try, had an operator not cancelled the event.
    """

    claim: Claim
    attempt: Attempt | None
    status: Status = Status.DELIVERING
    delay_s: float = 0.0
    cancelled: bool = False


def attempts_since_replay(event: Mapping[str, Any]) -> int:
    """Return how many attempts of a stored event have started since its last replay, or ever."""
    count: int = event["attempt_count"] - event.get("attempts_before", 0)
    return count
