"""The invariants of a stored event: true at any time, whichever process has died. Pure.

`wds check` applies them to a database, and the fault tests apply them after every fault.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from wds.domain import retry_policy
from wds.domain.deliveries import LIVE_STATUSES, Outcome, Status
from wds.domain.events import derived_id
from wds.domain.operator_actions import Action

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

INVARIANTS = {
    "status": "the status is one of the four",
    "live": "next_attempt_at is present exactly while the event is live",
    "finished": "finished_at is present exactly when the event is final",
    "lease": "only a DELIVERING event has a lease, with token, owner and since",
    "numbers": "attempts are numbered 1, 2, 3 ... without a gap",
    "count": "attempt_count is the number of attempts, or one more while leased",
    "limit": "no event has more attempts than WDS_MAX_ATTEMPTS since it was received or replayed",
    "untouched": "a RECEIVED event has no attempt",
    "success": "an event is DELIVERED exactly if its last attempt succeeded; none follows a success"
    " except after a replay",
    "replays": "attempts_before is the number of attempts at the last replay, and each replay falls"
    " between the attempts before it and those after it",
    "cancelling": "only an event with a lease has a cancellation pending",
    "early": "no attempt began before the backoff after the previous failure was over",
    "order": "attempts follow each other in time, after the event was received",
    "key": "the id is the one derived from source and idempotency key",
    "payload": "the payload has the stored hash",
    "overdue": "no event has been due, and no lease expired, for too long",
}
"""Name -> the rule."""


@dataclass(frozen=True, slots=True)
class Expectations:
    """The values that the documents are compared with.

    Attributes:
        now: the database's time when the document was read.
        max_attempts: the highest value that the dispatchers ever had.
        schedule: seconds between attempts; the lowest values that the dispatchers ever had.
        overdue_s: seconds that an event may be due before it counts as forgotten.
    """

    now: datetime
    max_attempts: int
    schedule: Sequence[float]
    overdue_s: float


def violations(event: Mapping[str, Any], expected: Expectations) -> Iterator[str]:
    """Yield the name of every invariant that the stored `event` violates.

    If the document has no `payload`, its hash is not checked.
    """
    if event["status"] not in set(Status):
        yield "status"
        return
    live = event["status"] in LIVE_STATUSES
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
        if "cancelling" in event:
            yield "cancelling"
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
    if event["status"] == Status.RECEIVED and (attempts or leased):
        yield "untouched"
    times = [event["received_at"], *(each["timestamp"] for each in attempts)]
    if any(later < earlier for earlier, later in pairwise(times)):
        yield "order"
    replays = [each for each in event.get("history", []) if each["action"] == Action.REPLAY]
    if not _replays_fit(event, replays):
        yield "replays"
    bounds = [0, *(each["attempt_count"] for each in replays)]
    rounds = [attempts[start:end] for start, end in pairwise([*bounds, len(attempts)])]
    counts = [end - start for start, end in pairwise([*bounds, event["attempt_count"]])]
    if any(count > expected.max_attempts for count in counts):
        yield "limit"
    if not _successes_fit(event, rounds):
        yield "success"
    if any(_is_early(each, expected.schedule) for each in rounds):
        yield "early"


def _replays_fit(event: Mapping[str, Any], replays: Sequence[Mapping[str, Any]]) -> bool:
    before = replays[-1]["attempt_count"] if replays else 0
    return event.get("attempts_before", 0) == before and all(
        attempt["timestamp"] >= replay["at"]
        if attempt["attempt_number"] > replay["attempt_count"]
        else attempt["timestamp"] <= replay["at"]
        for replay in replays
        for attempt in event["attempts"]
    )


def _successes_fit(event: Mapping[str, Any], rounds: Sequence[Sequence[Mapping[str, Any]]]) -> bool:
    """Whether each success is the last attempt of its round, and agrees with the status.

    A round is the attempts between two replays.
    """
    attempts = event["attempts"]
    successes = [[each["outcome"] == Outcome.SUCCESS for each in of_one] for of_one in rounds]
    if [each["success"] for each in attempts] != [each for flags in successes for each in flags]:
        return False
    if any(any(flags[:-1]) for flags in successes):
        return False
    if event["status"] in LIVE_STATUSES:
        return not any(successes[-1])
    last_succeeded = any(each["outcome"] == Outcome.SUCCESS for each in attempts[-1:])
    return last_succeeded == bool(event["status"] == Status.DELIVERED)


def _is_early(attempts: Sequence[Mapping[str, Any]], schedule: Sequence[float]) -> bool:
    """Whether an attempt of one round began before the backoff after a failure was over."""
    for step, (earlier, later) in enumerate(pairwise(attempts), start=1):
        earliest = earlier["timestamp"] + timedelta(seconds=retry_policy.delay_s(schedule, step))
        if earlier["outcome"] == Outcome.FAILURE and later["timestamp"] < earliest:
            return True
    return False


def _identity(event: Mapping[str, Any]) -> Iterator[str]:
    key = event.get("idempotency_key")
    if key is not None and event["_id"] != derived_id(event["source"], key):
        yield "key"
    payload = event.get("payload")
    if payload is not None and hashlib.sha256(payload).digest() != event["payload_sha256"]:
        yield "payload"
