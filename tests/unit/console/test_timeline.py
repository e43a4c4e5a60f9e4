"""An event's timeline: everything that happened, in order, and what comes next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from wds.console.timeline import timeline

START = datetime(2026, 3, 5, 14, 0, tzinfo=UTC)


def at(seconds):
    return START + timedelta(seconds=seconds)


def attempt(number, seconds, outcome="failure"):
    return {"attempt_number": number, "timestamp": at(seconds), "outcome": outcome}


def action(name, seconds, **more):
    return {"action": name, "at": at(seconds), "by": "ada", "remote": "10.0.0.1", **more}


def event(status, attempts=(), **more):
    return {
        "received_at": START,
        "status": status,
        "attempts": list(attempts),
        "attempt_count": len(attempts),
        **more,
    }


def titles(document):
    return [(entry.kind, entry.title) for entry in timeline(document)]


def test_timeline_of_a_new_event_has_its_first_attempt_next():
    assert titles(event("RECEIVED", next_attempt_at=START)) == [
        ("received", "Received"),
        ("waiting", "Attempt 1 is next"),
    ]


def test_timeline_orders_attempts_and_actions_by_time():
    document = event(
        "DELIVERED",
        [attempt(1, 1), attempt(2, 60, "success")],
        history=[action("cancel", 2), action("replay", 50, reason="fixed")],
        finished_at=at(61),
    )
    assert titles(document) == [
        ("received", "Received"),
        ("failure", "Attempt 1 failed"),
        ("cancel", "Cancelled"),
        ("replay", "Replayed"),
        ("success", "Attempt 2 delivered"),
    ]
    assert timeline(document)[3].text == "by ada (10.0.0.1): fixed"


def test_timeline_names_an_unknown_outcome():
    assert ("unknown", "Attempt 1 outcome unknown") in titles(
        event("DELIVERING", [attempt(1, 1, "unknown")], next_attempt_at=at(9))
    )


def test_timeline_of_a_leased_event_names_the_owner():
    lease = {"owner": "worker-1", "since": at(3)}
    document = event("DELIVERING", [attempt(1, 1)], lease=lease, next_attempt_at=at(33))
    document["attempt_count"] = 2
    assert timeline(document)[-1].title == "Attempt 2 under way"
    assert timeline(document)[-1].text == "by worker-1"
    document["cancelling"] = True
    assert "no attempt follows" in timeline(document)[-1].text


def test_timeline_of_a_failed_event_ends_with_the_failure():
    document = event("FAILED_PERMANENTLY", [attempt(1, 1)], finished_at=at(2))
    assert titles(document)[-1] == ("failure", "Failed permanently")


def test_timeline_of_a_cancelled_event_ends_with_the_cancel():
    cancelled = event(
        "FAILED_PERMANENTLY", [attempt(1, 1)], history=[action("cancel", 2)], finished_at=at(2)
    )
    assert titles(cancelled)[-1] == ("cancel", "Cancelled")
    cancelled["history"].append(action("replay", 3))
    cancelled["attempts"].append(attempt(2, 4))
    assert titles(cancelled)[-1] == ("failure", "Failed permanently")
