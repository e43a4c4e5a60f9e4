"""Which events can be replayed or cancelled, and what a bulk action examines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from wds.domain.deliveries import Status
from wds.domain.event_filter import EventFilter
from wds.domain.operator_actions import (
    Action,
    Verdict,
    affected_events,
    can_cancel,
    can_replay,
    is_request_id,
    obstacle,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
STATES = {
    "never attempted": {"attempt_count": 0, "next_attempt_at": NOW},
    "leased": {"attempt_count": 1, "next_attempt_at": NOW, "lease": {}},
    "leased, cancelling": {
        "attempt_count": 1,
        "next_attempt_at": NOW,
        "lease": {},
        "cancelling": True,
    },
    "waiting after a failure": {"attempt_count": 1, "next_attempt_at": NOW},
    "waiting after a replay": {"attempt_count": 2, "attempts_before": 2, "next_attempt_at": NOW},
    "final": {"attempt_count": 1},
    "final, cancelled after a replay": {"attempt_count": 2, "attempts_before": 2},
    "final, never attempted": {"attempt_count": 0},
}


@pytest.mark.parametrize(
    ("state", "replay", "cancel"),
    [
        ("never attempted", Verdict.WAITING, None),
        ("leased", Verdict.LEASED, None),
        ("leased, cancelling", Verdict.CANCELLING, Verdict.CANCELLING),
        ("waiting after a failure", None, None),
        ("waiting after a replay", Verdict.WAITING, None),
        ("final", None, Verdict.FINAL),
        ("final, cancelled after a replay", None, Verdict.FINAL),
        ("final, never attempted", None, Verdict.FINAL),
    ],
)
def test_obstacle_says_why_an_event_cannot_be_replayed_or_cancelled(state, replay, cancel):
    event = STATES[state]
    assert obstacle(Action.REPLAY, event) is replay
    assert obstacle(Action.CANCEL, event) is cancel
    assert (can_replay(event), can_cancel(event)) == (replay is None, cancel is None)


@pytest.mark.parametrize(
    ("action", "chosen", "affected"),
    [
        (Action.REPLAY, [], ["DELIVERING", "DELIVERED", "FAILED_PERMANENTLY"]),
        (Action.REPLAY, ["RECEIVED", "DELIVERED"], ["DELIVERED"]),
        (Action.CANCEL, [], ["RECEIVED", "DELIVERING"]),
        (Action.CANCEL, list(Status), ["RECEIVED", "DELIVERING"]),
    ],
)
def test_affected_events_leaves_out_statuses_with_nothing_to_do(action, chosen, affected):
    found = affected_events(action, EventFilter(status=chosen, event_type=["a"]), NOW)
    assert found == EventFilter(status=affected, event_type=["a"], to=NOW)


@pytest.mark.parametrize(
    ("action", "status"), [(Action.REPLAY, "RECEIVED"), (Action.CANCEL, "DELIVERED")]
)
def test_affected_events_is_none_if_no_status_is_left(action, status):
    assert affected_events(action, EventFilter(status=[status]), NOW) is None


@pytest.mark.parametrize("hours", [-1, 1])
def test_affected_events_were_received_before_the_bulk_action_starts(hours):
    to = NOW + timedelta(hours=hours)
    assert affected_events(Action.REPLAY, EventFilter(to=to), NOW).to == min(to, NOW)


@pytest.mark.parametrize("value", [".", "..", "", "a\nb", "x" * 256, None])
def test_is_request_id_refuses_what_cannot_stand_in_an_address(value):
    assert not is_request_id(value)


@pytest.mark.parametrize("value", ["r", "...", "a/b", "{}", "x" * 255])
def test_is_request_id_accepts_other_labels(value):
    assert is_request_id(value)
