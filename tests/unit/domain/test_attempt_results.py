"""The result of an attempt decides what is recorded and when the event is next due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from msgspec import structs

from tests.support import make_destination
from wds.domain.attempt_results import (
    MAX_ERROR_LENGTH,
    BrokenAnswer,
    Delivered,
    Phase,
    Rejected,
    TimedOut,
    Unreachable,
    error_text,
    settlement,
)
from wds.domain.deliveries import Claim, Outcome, Status

BACKOFF = (0.05, 0.1, 0.2, 0.4)
DESTINATION = make_destination("http://h/", backoff=BACKOFF, max_attempts=5)
NOW = datetime(2026, 3, 1, tzinfo=UTC)
CLAIM = Claim("0" * 32, "t", 1, NOW, 100.0, 130.0, "default", None, "a/b", b"")
SENT = {"sent_at": 100.25, "duration_ms": 7}
DELIVERED = Delivered(**SENT, status_code=204, response="")
REJECTED = Rejected(**SENT, status_code=500, response="no", retry_after_s=0.0)
TIMED_OUT = TimedOut(**SENT, phase=Phase.ANSWER, timeout_s=2.5)
UNREACHABLE = Unreachable(**SENT, phase=Phase.CONNECT, cause="OSError", detail="refused")
BROKEN = BrokenAnswer(**SENT, status_code=200, cause="ClientPayloadError", detail="cut short")


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (DELIVERED, None),
        (REJECTED, "HTTP 500"),
        (TIMED_OUT, "no complete answer within 2.5 s"),
        (UNREACHABLE, "OSError: refused"),
        (BROKEN, "ClientPayloadError: cut short"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_text_of_each_result(result, text):
    assert error_text(result) == text


def test_error_text_is_cut():
    assert len(error_text(structs.replace(UNREACHABLE, detail="x" * 999))) == MAX_ERROR_LENGTH


@pytest.mark.parametrize("result", [REJECTED, TIMED_OUT, UNREACHABLE, BROKEN])
def test_settlement_records_a_failure_with_what_is_known_of_it(result):
    ended = settlement(CLAIM, result, DESTINATION)
    assert ended.attempt.outcome is Outcome.FAILURE
    assert ended.attempt.timestamp == NOW + timedelta(seconds=0.25)
    assert ended.attempt.duration_ms == 7
    assert ended.attempt.status_code == result.status_code
    assert ended.attempt.error == error_text(result)
    assert (ended.status, ended.delay_s) == (Status.DELIVERING, BACKOFF[0])


def test_settlement_of_a_delivered_event_is_final():
    ended = settlement(structs.replace(CLAIM, attempt_number=5), DELIVERED, DESTINATION)
    assert (ended.status, ended.attempt.outcome) == (Status.DELIVERED, Outcome.SUCCESS)
    assert ended.attempt.error is None


@pytest.mark.parametrize("before", [0, 5, 50])
def test_settlement_starts_the_schedule_again_after_a_replay(before):
    ended = [
        settlement(
            structs.replace(CLAIM, attempt_number=before + step, attempts_before=before),
            REJECTED,
            DESTINATION,
        )
        for step in range(1, 6)
    ]
    assert [each.delay_s for each in ended[:4]] == list(BACKOFF)
    assert [each.status for each in ended] == [Status.DELIVERING] * 4 + [Status.FAILED_PERMANENTLY]


def test_settlement_waits_as_long_as_retry_after_asks():
    ended = settlement(CLAIM, structs.replace(REJECTED, retry_after_s=9.0), DESTINATION)
    assert ended.delay_s == 9.0
