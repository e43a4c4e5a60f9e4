"""Where a look at the queue begins, by what the looks before it have found."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from wds import head
from wds.head import Head

FIRST = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("wds.head.monotonic", lambda: now[0])
    return now


@pytest.mark.usefixtures("clock")
def test_the_first_look_and_one_without_a_backlog_begin_at_the_beginning():
    queue = Head()
    assert queue.since() is None
    queue.saw(FIRST, None)
    assert queue.since() == FIRST - head.MARGIN
    queue.saw(None, None)
    assert queue.since() is None


def test_looks_follow_the_head_but_begin_at_the_beginning_once_a_second(clock):
    queue = Head()
    assert queue.since() is None
    queue.saw(FIRST, None)
    for _ in range(9):
        clock[0] += 0.1
        since = queue.since()
        assert since is not None
        queue.saw(since + head.MARGIN + timedelta(seconds=1), since)
    assert queue.since() == FIRST - head.MARGIN + timedelta(seconds=9)
    # What was found in between has not put it off.
    clock[0] += 0.11
    assert queue.since() is None


def test_the_second_counts_from_before_the_look_which_may_take_long(clock):
    queue = Head()
    assert queue.since() is None
    clock[0] += 0.7
    queue.saw(FIRST, None)
    clock[0] += 0.4
    assert queue.since() is None
