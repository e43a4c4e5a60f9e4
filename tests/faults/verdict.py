"""The verdict on a run: compares acknowledgements, stored events and received requests."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.support import most_in_any_second
from wds.domain.invariants import Expectations, violations

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.support import Request

FINAL = {"DELIVERED", "FAILED_PERMANENTLY"}


@dataclass(frozen=True)
class Verdict:
    """What went wrong, by event id; all lists are empty if nothing did.

    Attributes:
        lost: acknowledged, but not in the database.
        stuck: not final at the end.
        unsent: DELIVERED without a request at the receiver.
        duplicated: accepted by the receiver more than once, with the number of extra times.
        unexplained: duplicated without as many lost attempts on record.
        twice_stored: idempotency keys with more than one event.
        early: retried before the delay was over, by the receiver's clock.
        most_in_a_second: most requests within any one second, by the receiver's clock.
        lost_attempts: the number of attempts recorded as `unknown`: faults that had an effect.
        broken: events that violate an invariant, with the name of the invariant.
    """

    lost: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    unsent: list[str] = field(default_factory=list)
    duplicated: dict[str, int] = field(default_factory=dict)
    unexplained: list[str] = field(default_factory=list)
    twice_stored: list[str] = field(default_factory=list)
    early: list[str] = field(default_factory=list)
    most_in_a_second: int = 0
    lost_attempts: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)

    @property
    def faults(self) -> dict[str, object]:
        """Return what no fault may cause; empty if nothing of it happened."""
        never = ("lost", "stuck", "unsent", "unexplained", "twice_stored", "early", "broken")
        return {name: getattr(self, name) for name in never if getattr(self, name)}


def judge(
    acknowledged: Iterable[str],
    documents: Sequence[dict[str, Any]],
    requests: Sequence[Request],
    expected: Expectations,
) -> Verdict:
    """Return the verdict on one run."""
    stored = {document["_id"]: document for document in documents}
    accepted = Counter(each.headers["webhook-id"] for each in requests if each.status == 200)
    duplicated = {event_id: count - 1 for event_id, count in accepted.items() if count > 1}
    keys = Counter(each["idempotency_key"] for each in documents if "idempotency_key" in each)
    delivered = [each["_id"] for each in documents if each["status"] == "DELIVERED"]
    return Verdict(
        lost=sorted(set(acknowledged) - set(stored)),
        stuck=[each["_id"] for each in documents if each["status"] not in FINAL],
        unsent=[event_id for event_id in delivered if not accepted[event_id]],
        duplicated=duplicated,
        unexplained=[
            event_id
            for event_id, extra in duplicated.items()
            if _unknown_attempts(stored.get(event_id)) < extra
        ],
        twice_stored=[key for key, count in keys.items() if count > 1],
        early=_early(stored, requests, expected.schedule),
        most_in_a_second=most_in_any_second([each.at for each in requests]),
        lost_attempts=sum(map(_unknown_attempts, documents)),
        broken=[(each["_id"], name) for each in documents for name in violations(each, expected)],
    )


def _unknown_attempts(document: dict[str, Any] | None) -> int:
    attempts = document["attempts"] if document else []
    return sum(attempt["outcome"] == "unknown" for attempt in attempts)


def _early(
    stored: dict[str, dict[str, Any]], requests: Sequence[Request], schedule: Sequence[float]
) -> list[str]:
    """Return the ids of events retried too soon after a failed answer."""
    last: dict[str, Request] = {}
    early = []
    for request in sorted(requests, key=lambda each: each.at):
        event_id = request.headers["webhook-id"]
        before = last.get(event_id)
        if before is not None and before.status != 200:
            number = int(before.headers["webhook-attempt"])
            attempts = stored[event_id]["attempts"] if event_id in stored else []
            known = number <= len(attempts) and attempts[number - 1]["outcome"] == "failure"
            delay = schedule[min(number, len(schedule)) - 1]
            if known and request.at - before.at < delay:
                early.append(event_id)
        last[event_id] = request
    return early
