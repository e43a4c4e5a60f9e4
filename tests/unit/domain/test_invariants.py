"""Each invariant, on an event that keeps it and on one that breaks just it."""

from __future__ import annotations

import hashlib
from copy import deepcopy
from datetime import UTC, datetime, timedelta

import pytest

from wds.domain.events import derived_id
from wds.domain.invariants import INVARIANTS, Expectations, violations

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
EXPECTED = Expectations(now=NOW, max_attempts=3, schedule=(1.0, 2.0), overdue_s=60)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def attempt(number: int, seconds_ago: float, outcome: str = "failure") -> dict:
    return {
        "attempt_number": number,
        "timestamp": ago(seconds_ago),
        "outcome": outcome,
        "success": outcome == "success",
    }


def event(**fields) -> dict:
    base = {
        "_id": derived_id("default", "k"),
        "source": "default",
        "idempotency_key": "k",
        "received_at": ago(100),
        "payload": b"{}",
        "payload_sha256": hashlib.sha256(b"{}").digest(),
    }
    return {**base, **fields}


LEASE = {"token": "t", "owner": "o", "since": ago(1)}
RECEIVED = event(status="RECEIVED", attempt_count=0, attempts=[], next_attempt_at=ago(1))
LEASED = event(
    status="DELIVERING",
    attempt_count=2,
    attempts=[attempt(1, 90)],
    next_attempt_at=ago(-20),
    lease=LEASE,
)
WAITING = event(
    status="DELIVERING", attempt_count=1, attempts=[attempt(1, 90)], next_attempt_at=ago(-5)
)
DELIVERED = event(
    status="DELIVERED",
    attempt_count=3,
    attempts=[attempt(1, 90), attempt(2, 80, "unknown"), attempt(3, 80, "success")],
    finished_at=ago(79),
)
BURIED = event(
    status="FAILED_PERMANENTLY",
    attempt_count=3,
    attempts=[attempt(1, 90), attempt(2, 80), attempt(3, 70)],
    finished_at=ago(69),
)


def replay(seconds_ago: float, attempt_count: int) -> dict:
    return {"action": "replay", "at": ago(seconds_ago), "attempt_count": attempt_count}


REPLAYED = event(
    status="FAILED_PERMANENTLY",
    attempt_count=6,
    attempts=[attempt(n, 100 - 5 * n) for n in range(1, 7)],
    attempts_before=3,
    history=[replay(82, 3), {"action": "cancel", "at": ago(60), "attempt_count": 6}],
    finished_at=ago(60),
)
"""Replayed after three failures, and after three more cancelled."""
REPLAYED_AFTER_SUCCESS = event(
    status="DELIVERING",
    attempt_count=2,
    attempts=[attempt(1, 90, "success"), attempt(2, 50)],
    attempts_before=1,
    history=[replay(60, 1)],
    next_attempt_at=ago(-5),
)
UNDONE = event(
    status="DELIVERED",
    attempt_count=1,
    attempts=[attempt(1, 90, "success")],
    attempts_before=1,
    history=[replay(60, 1), {"action": "cancel", "at": ago(50), "attempt_count": 1}],
    finished_at=ago(50),
)
CANCELLING = {**LEASED, "cancelling": True}


@pytest.mark.parametrize(
    "sound",
    [
        *(RECEIVED, LEASED, WAITING, DELIVERED, BURIED),
        *(REPLAYED, REPLAYED_AFTER_SUCCESS, UNDONE, CANCELLING),
    ],
)
def test_violations_of_a_sound_event_are_none(sound):
    assert list(violations(sound, EXPECTED)) == []


BROKEN = [
    ("status", RECEIVED, {"status": "SENT"}),
    ("live", RECEIVED, {"next_attempt_at": None}),
    ("live", DELIVERED, {"next_attempt_at": ago(0)}),
    ("finished", WAITING, {"finished_at": ago(1)}),
    ("finished", BURIED, {"finished_at": None}),
    ("lease", LEASED, {"lease": {"token": "t"}}),
    ("lease", DELIVERED, {"lease": LEASE, "attempt_count": 4}),
    (
        "numbers",
        DELIVERED,
        {"attempts": [attempt(1, 90), attempt(1, 80), attempt(3, 70, "success")]},
    ),
    ("count", WAITING, {"attempt_count": 2}),
    ("count", LEASED, {"attempt_count": 1}),
    (
        "limit",
        BURIED,
        {"attempt_count": 4, "attempts": [attempt(n, 99 - 9 * n) for n in range(1, 5)]},
    ),
    ("untouched", RECEIVED, {"attempt_count": 1, "attempts": [attempt(1, 90)]}),
    ("success", DELIVERED, {"attempts": DELIVERED["attempts"][:2], "attempt_count": 2}),
    ("success", BURIED, {"attempts": [attempt(1, 9, "success")], "attempt_count": 1}),
    ("success", WAITING, {"attempts": [{**attempt(1, 90), "success": True}]}),
    ("limit", REPLAYED, {"history": [replay(87, 2)], "attempts_before": 2}),
    ("limit", REPLAYED, {"attempts_before": 0, "history": []}),
    ("success", REPLAYED_AFTER_SUCCESS, {"attempts_before": 0, "history": []}),
    (
        "success",
        REPLAYED_AFTER_SUCCESS,
        {"attempts": [attempt(1, 90, "success"), attempt(2, 50, "success")]},
    ),
    ("success", UNDONE, {"status": "FAILED_PERMANENTLY"}),
    ("replays", REPLAYED, {"attempts_before": 2}),
    ("replays", REPLAYED, {"history": [replay(79, 3)]}),
    ("replays", REPLAYED, {"history": [replay(86, 3)]}),
    ("cancelling", WAITING, {"cancelling": True}),
    ("cancelling", DELIVERED, {"cancelling": True}),
    ("early", REPLAYED, {"attempts": [attempt(n, 90 - n / 2) for n in range(1, 7)]}),
    ("early", BURIED, {"attempts": [attempt(1, 90), attempt(2, 89.5), attempt(3, 70)]}),
    ("early", BURIED, {"attempts": [attempt(1, 90), attempt(2, 80), attempt(3, 78.5)]}),
    ("order", WAITING, {"attempts": [attempt(1, 101)]}),
    ("key", RECEIVED, {"idempotency_key": "other"}),
    ("payload", RECEIVED, {"payload": b"[]"}),
    ("overdue", RECEIVED, {"next_attempt_at": ago(61)}),
    ("overdue", LEASED, {"next_attempt_at": ago(61)}),
]


@pytest.mark.parametrize(("name", "sound", "change"), BROKEN)
def test_violations_of_a_broken_event_have_the_invariants_name(name, sound, change):
    broken = {**deepcopy(sound), **change}
    assert name in list(violations(broken, EXPECTED))


def test_invariants_each_have_an_event_that_breaks_them():
    assert {name for name, _, _ in BROKEN} == set(INVARIANTS)


def test_violations_do_not_need_the_payload():
    assert list(violations({**RECEIVED, "payload": None}, EXPECTED)) == []
