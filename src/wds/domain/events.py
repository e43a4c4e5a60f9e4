"""The vocabulary: events, claims, attempts and what becomes of them. Pure: no I/O, no clock.

What is made anew for each event is a `msgspec.Struct`; a frozen dataclass takes six to twelve times
as long.

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

import hashlib
from enum import StrEnum
from typing import TYPE_CHECKING

from msgspec import Struct, field

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

ID_LENGTH = 32
"""Characters of an event id: 128 bits in lower-case hex."""
MAX_LABEL = 255
"""Most characters of an event type or an idempotency key."""

MAX_BATCH = 1000
"""Most events in one batch request."""


class Status(StrEnum):
    """Where an event stands. Only the store changes it."""

    RECEIVED = "RECEIVED"
    DELIVERING = "DELIVERING"
    DELIVERED = "DELIVERED"
    FAILED_PERMANENTLY = "FAILED_PERMANENTLY"


class Outcome(StrEnum):
    """What is known of one attempt."""

    SUCCESS = "success"
    FAILURE = "failure"
    UNKNOWN = "unknown"
    """The dispatcher died or stalled between claiming the event and recording a result."""


class Action(StrEnum):
    """What an operator can do to an event; each one done is kept in its `history`."""

    REPLAY = "replay"
    CANCEL = "cancel"


class Instruction(Struct, frozen=True):
    """What an operator wants done to an event, as it goes on its record.

    Attributes:
        request_id: whoever repeats it changes nothing twice.
        by: who asks, in their own words; not proven.
        remote: the network address the request came from.
        reason: why, in their own words.
    """

    action: Action
    request_id: str
    by: str
    remote: str
    reason: str | None = None


class NewEvent(Struct, frozen=True):
    """An event that was verified and not yet stored. Never changed after that."""

    id: str
    source: str
    payload: bytes
    content_type: str
    event_type: str | None = None
    idempotency_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    destination: str = "default"
    trace: Mapping[str, str] | None = None
    """`traceparent` and perhaps `tracestate` of whoever sent it, while tracing is on."""

    @property
    def payload_sha256(self) -> bytes:
        """32 bytes; tells a repeat from another payload under the same idempotency key."""
        return hashlib.sha256(self.payload).digest()


class Receipt(Struct, frozen=True):
    """An event is durable: majority-committed and journaled.

    Attributes:
        id: the event's id; of the first one, when this is a repeat.
        status: its status when the answer was made.
        duplicate: True if an earlier request stored it.
    """

    id: str
    status: Status
    duplicate: bool


class Conflict(Struct, frozen=True):
    """The idempotency key already belongs to another payload; nothing was stored.

    Attributes:
        id: the event that has the key.
        status: its status when the answer was made.
    """

    id: str
    status: Status


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


def is_label(value: object) -> bool:
    """Tell whether `value` can name a type or a key: a short, printable, non-empty string."""
    return isinstance(value, str) and 0 < len(value) <= MAX_LABEL and value.isprintable()


def is_request_id(value: object) -> bool:
    """Tell whether `value` can be the id of an operator's request.

    A label, but for the two that clients take out of the path of an address (RFC 3986, 5.2.4).
    """
    return is_label(value) and value not in {".", ".."}


def derived_id(source: str, idempotency_key: str) -> str:
    """Return the id that every event with this key from this source has.

    The first 128 bits of SHA-256 over the length-prefixed pair, so that no two pairs share
    an encoding and the primary key is the uniqueness constraint.
    """
    name = source.encode()
    digest = hashlib.sha256(b"%d:%s:%s" % (len(name), name, idempotency_key.encode()))
    return digest.hexdigest()[:ID_LENGTH]


def random_id(now: datetime, entropy: bytes) -> str:
    """Return an id that sorts by time: 48 bits of milliseconds, then 80 bits of `entropy`."""
    return f"{int(now.timestamp() * 1000):012x}{entropy[:10].hex()}"
