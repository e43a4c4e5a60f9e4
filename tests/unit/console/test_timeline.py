"""An event's timeline: everything that happened, in order, and what comes next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from wds.console.timeline import story

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


def told(document):
    return [(entry.kind, entry.title) for entry in story(document)]


def test_a_new_event_was_received_and_waits():
    assert told(event("RECEIVED", next_attempt_at=START)) == [
        ("received", "Received"),
        ("waiting", "Attempt 1 is next"),
    ]


def test_replays_stand_between_the_attempts_they_stand_between():
    document = event(
        "DELIVERED",
        [attempt(1, 1), attempt(2, 60, "success")],
        history=[action("cancel", 2), action("replay", 50, reason="fixed")],
        finished_at=at(61),
    )
    assert told(document) == [
        ("received", "Received"),
        ("failure", "Attempt 1 failed"),
        ("cancel", "Cancelled"),
        ("replay", "Replayed"),
        ("success", "Attempt 2 delivered"),
    ]
    assert story(document)[3].text == "by ada (10.0.0.1): fixed"


def test_an_attempt_of_unknown_outcome_says_so():
    assert ("unknown", "Attempt 1 outcome unknown") in told(
        event("DELIVERING", [attempt(1, 1, "unknown")], next_attempt_at=at(9))
    )


def test_an_event_that_is_being_delivered_says_by_whom():
    lease = {"owner": "worker-1", "since": at(3)}
    document = event("DELIVERING", [attempt(1, 1)], lease=lease, next_attempt_at=at(33))
    document["attempt_count"] = 2
    assert story(document)[-1].title == "Attempt 2 under way"
    assert story(document)[-1].text == "by worker-1"
    document["cancelling"] = True
    assert "nothing comes after it" in story(document)[-1].text


def test_an_event_that_failed_for_good_ends_with_that():
    document = event("FAILED_PERMANENTLY", [attempt(1, 1)], finished_at=at(2))
    assert told(document)[-1] == ("failure", "Given up")


def test_an_event_that_an_operator_cancelled_ends_with_that_and_is_not_given_up():
    cancelled = event(
        "FAILED_PERMANENTLY", [attempt(1, 1)], history=[action("cancel", 2)], finished_at=at(2)
    )
    assert told(cancelled)[-1] == ("cancel", "Cancelled")
    cancelled["history"].append(action("replay", 3))
    cancelled["attempts"].append(attempt(2, 4))
    assert told(cancelled)[-1] == ("failure", "Given up")
