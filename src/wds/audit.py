"""What must be true of every event document, whatever has died. Pure.

`check` runs it over a database; the fault tests run it after every fault.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from wds import backoff
from wds.model import Outcome, Status, derived_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LIVE = (Status.RECEIVED, Status.DELIVERING)

INVARIANTS = {
    "status": "the status is one of the four",
    "live": "next_attempt_at is there exactly while the event is live",
    "finished": "finished_at is there exactly when the event is final",
    "lease": "only a DELIVERING event has a lease, with token, owner and since",
    "numbers": "attempts are numbered 1, 2, 3 ... without a gap",
    "count": "attempt_count is the number of attempts, or one more while leased",
    "limit": "no event has more attempts than WDS_MAX_ATTEMPTS",
    "untouched": "a RECEIVED event has no attempt",
    "success": "an event is DELIVERED exactly if its last attempt, and no other, succeeded",
    "early": "no attempt began before the delay after the failure before it was over",
    "order": "attempts follow each other in time, after the event was received",
    "key": "the id is the one derived from source and idempotency key",
    "payload": "the payload has the hash that was stored with it",
    "overdue": "no event has been due, and no lease expired, for too long",
}
"""Name -> what it says."""


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the documents are held against.

    Attributes:
        now: the database's time when the document was read.
        max_attempts: as the dispatchers have it; the highest they ever had.
        schedule: seconds between attempts; the lowest the dispatchers ever had.
        overdue_s: how long an event may be due before nobody seems to care for it.
    """

    now: datetime
    max_attempts: int
    schedule: Sequence[float]
    overdue_s: float


def violations(event: Mapping[str, Any], expected: Expectations) -> Iterator[str]:
    """Yield the name of every invariant that `event`, as stored, violates.

    `payload` may be left out of the document; its hash is then not checked.
    """
    if event["status"] not in set(Status):
        yield "status"
        return
    live = event["status"] in LIVE
    due = event.get("next_attempt_at")
    if live != (due is not None):
        yield "live"
    if live == (event.get("finished_at") is not None):
        yield "finished"
    if due is not None and due < expected.now - timedelta(seconds=expected.overdue_s):
        yield "overdue"
    yield from _lease(event)
    yield from _attempts(event, expected)
    yield from _identity(event)


def _lease(event: Mapping[str, Any]) -> Iterator[str]:
    lease = event.get("lease")
    if lease is None:
        return
    complete = {"token", "owner", "since"} <= set(lease)
    if not complete or event["status"] != Status.DELIVERING:
        yield "lease"


def _attempts(event: Mapping[str, Any], expected: Expectations) -> Iterator[str]:
    attempts = event["attempts"]
    if [each["attempt_number"] for each in attempts] != list(range(1, len(attempts) + 1)):
        yield "numbers"
    leased = event.get("lease") is not None
    if event["attempt_count"] != len(attempts) + leased:
        yield "count"
    if event["attempt_count"] > expected.max_attempts:
        yield "limit"
    if event["status"] == Status.RECEIVED and (attempts or leased):
        yield "untouched"
    successes = [each["outcome"] == Outcome.SUCCESS for each in attempts]
    delivered = event["status"] == Status.DELIVERED
    flags = [each["success"] for each in attempts]
    if any(successes[:-1]) or flags != successes or delivered != any(successes[-1:]):
        yield "success"
    times = [event["received_at"], *(each["timestamp"] for each in attempts)]
    if any(later < earlier for earlier, later in pairwise(times)):
        yield "order"
    for earlier, later in pairwise(attempts):
        wait_s = backoff.delay_s(expected.schedule, earlier["attempt_number"])
        earliest = earlier["timestamp"] + timedelta(seconds=wait_s)
        if earlier["outcome"] == Outcome.FAILURE and later["timestamp"] < earliest:
            yield "early"


def _identity(event: Mapping[str, Any]) -> Iterator[str]:
    key = event.get("idempotency_key")
    if key is not None and event["_id"] != derived_id(event["source"], key):
        yield "key"
    payload = event.get("payload")
    if payload is not None and hashlib.sha256(payload).digest() != event["payload_sha256"]:
        yield "payload"
