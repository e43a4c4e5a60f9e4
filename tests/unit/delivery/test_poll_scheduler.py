"""When a dispatcher polls again: it depends on what it found, and on notices."""

from __future__ import annotations

import asyncio

import pytest

from wds.delivery.poll_scheduler import LISTEN_MAX_S, MAX_JITTER_S, MIN_POLL_GAP_S, PollScheduler
from wds.domain.deliveries import Claimed

NOTHING = Claimed([])
OTHERS_WERE_FIRST = Claimed([], others_were_first=True)
FOUND = Claimed(["claim"])
POLL_S = 0.4


class Listen:
    """Returns or raises `answer` at once, and records the longest waits it was called with."""

    def __init__(self, *, answer=True):
        self.answer = answer
        self.calls = []

    async def __call__(self, max_s):
        self.calls.append(max_s)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def scheduler_of(listen, *, poll_interval=POLL_S, stopping=None):
    return PollScheduler(listen, poll_interval=poll_interval, stopping=stopping or asyncio.Event())


def record(scheduler, *polls):
    for claimed in polls:
        scheduler.record_poll(claimed)


async def test_until_next_polls_once_more_after_an_empty_poll_and_then_listens():
    listen = Listen()
    scheduler = scheduler_of(listen)
    record(scheduler, NOTHING)
    assert await scheduler.until_next(POLL_S) == MIN_POLL_GAP_S
    assert listen.calls == []
    record(scheduler, NOTHING)
    assert await scheduler.until_next(POLL_S) <= MIN_POLL_GAP_S
    assert listen.calls == [LISTEN_MAX_S]


async def test_until_next_does_not_listen_after_a_poll_that_found_events():
    listen = Listen()
    scheduler = scheduler_of(listen)
    record(scheduler, NOTHING, NOTHING, FOUND)
    assert await scheduler.until_next(0.0) == 0.0
    assert await scheduler.until_next(0.3) == 0.3  # as long as the limiter has no slot
    record(scheduler, NOTHING)
    await scheduler.until_next(POLL_S)
    assert listen.calls == []


@pytest.mark.parametrize("listen", [None, Listen(answer=False)], ids=["off", "unable"])
async def test_until_next_is_the_poll_interval_without_a_change_stream(listen):
    scheduler = scheduler_of(listen)
    record(scheduler, NOTHING, NOTHING, NOTHING)
    assert await scheduler.until_next(POLL_S) == POLL_S


async def test_until_next_is_the_poll_interval_after_the_first_empty_poll_too():
    scheduler = scheduler_of(None)
    record(scheduler, NOTHING)
    assert await scheduler.until_next(POLL_S) == POLL_S


async def test_poll_s_differs_so_that_replicas_do_not_poll_in_step():
    waits = [scheduler_of(None).poll_s() for _ in range(200)]
    assert min(waits) >= 0.75 * POLL_S
    assert max(waits) <= 1.25 * POLL_S
    assert max(waits) - min(waits) > 0.3 * POLL_S


async def test_until_next_listens_for_a_poll_interval_longer_than_the_maximum():
    listen = Listen()
    scheduler = scheduler_of(listen, poll_interval=20.0)
    record(scheduler, NOTHING, NOTHING)
    await scheduler.until_next(20.0)
    assert listen.calls == [20.0]


async def test_until_next_is_zero_for_a_notice_long_after_the_last_poll(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("wds.delivery.poll_scheduler.monotonic", lambda: now)
    scheduler = scheduler_of(Listen())
    record(scheduler, NOTHING, NOTHING)
    assert await scheduler.until_next(POLL_S) == pytest.approx(MIN_POLL_GAP_S)
    now += MIN_POLL_GAP_S / 2
    assert await scheduler.until_next(POLL_S) == pytest.approx(MIN_POLL_GAP_S / 2)
    now += 1
    assert await scheduler.until_next(POLL_S) == 0


async def test_until_next_is_jittered_after_polls_that_lost_all_events_to_others(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("wds.delivery.poll_scheduler.monotonic", lambda: now)
    scheduler = scheduler_of(Listen())
    record(scheduler, *[OTHERS_WERE_FIRST] * 10)
    now += 1
    waits = [await scheduler.until_next(POLL_S) for _ in range(100)]
    assert MAX_JITTER_S / 2 < max(waits) <= MAX_JITTER_S
    record(scheduler, *[FOUND] * 10, NOTHING, NOTHING)
    now += 1
    assert await scheduler.until_next(POLL_S) == 0


async def test_until_next_does_not_listen_while_stopping():
    listen, stopping = Listen(), asyncio.Event()
    scheduler = scheduler_of(listen, stopping=stopping)
    record(scheduler, NOTHING, NOTHING)
    stopping.set()
    assert await scheduler.until_next(POLL_S) == POLL_S
    assert listen.calls == []


async def test_until_next_stops_listening_on_stopping():
    stopping, over = asyncio.Event(), asyncio.Event()

    async def never(_):
        stopping.set()
        try:
            await asyncio.Event().wait()
        finally:
            over.set()

    scheduler = scheduler_of(never, stopping=stopping)
    record(scheduler, NOTHING, NOTHING)
    assert await asyncio.wait_for(scheduler.until_next(POLL_S), 5) == POLL_S
    await asyncio.wait_for(over.wait(), 5)


async def test_until_next_raises_what_listen_raises():
    scheduler = scheduler_of(Listen(answer=RuntimeError("defect")))
    record(scheduler, NOTHING, NOTHING)
    with pytest.raises(RuntimeError, match="defect"):
        await scheduler.until_next(POLL_S)
