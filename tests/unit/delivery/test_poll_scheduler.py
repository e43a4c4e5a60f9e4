"""When a dispatcher looks again: what it found decides, and who tells it."""

from __future__ import annotations

import asyncio

import pytest

from wds.delivery.poll_scheduler import LISTEN_MOST_S, LOOKS_APART_S, SPREAD_MOST_S, Lookout
from wds.domain.deliveries import Claimed

NOTHING = Claimed([])
OUTRUN = Claimed([], outrun=True)
FOUND = Claimed(["claim"])
POLL_S = 0.4


class Teller:
    """Says what it is told to say, and how long it was to wait at most."""

    def __init__(self, *, answer=True):
        self.answer = answer
        self.asked = []

    async def __call__(self, most_s):
        self.asked.append(most_s)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def lookout(teller, *, poll_interval=POLL_S, stopping=None):
    return Lookout(teller, poll_interval=poll_interval, stopping=stopping or asyncio.Event())


def looked(watch, *looks):
    for claimed in looks:
        watch.looked(claimed)


async def test_after_one_look_in_vain_comes_another_and_then_listening():
    teller = Teller()
    watch = lookout(teller)
    looked(watch, NOTHING)
    assert await watch.until_next(POLL_S) == LOOKS_APART_S
    assert teller.asked == []
    looked(watch, NOTHING)
    assert await watch.until_next(POLL_S) <= LOOKS_APART_S
    assert teller.asked == [LISTEN_MOST_S]


async def test_after_a_find_nothing_is_waited_for():
    teller = Teller()
    watch = lookout(teller)
    looked(watch, NOTHING, NOTHING, FOUND)
    assert await watch.until_next(0.0) == 0.0
    assert await watch.until_next(0.3) == 0.3  # as long as the limiter has no slot
    looked(watch, NOTHING)
    await watch.until_next(POLL_S)
    assert teller.asked == []


@pytest.mark.parametrize("teller", [None, Teller(answer=False)], ids=["off", "unable"])
async def test_where_nobody_tells_it_is_the_poll_interval_that_counts(teller):
    watch = lookout(teller)
    looked(watch, NOTHING, NOTHING, NOTHING)
    assert await watch.until_next(POLL_S) == POLL_S


async def test_who_never_listens_does_not_hurry_after_the_first_look_either():
    watch = lookout(None)
    looked(watch, NOTHING)
    assert await watch.until_next(POLL_S) == POLL_S


async def test_replicas_do_not_poll_in_step():
    waits = [lookout(None).poll_s() for _ in range(200)]
    assert min(waits) >= 0.75 * POLL_S
    assert max(waits) <= 1.25 * POLL_S
    assert max(waits) - min(waits) > 0.3 * POLL_S


async def test_who_looks_seldom_waits_as_long_to_be_told():
    teller = Teller()
    watch = lookout(teller, poll_interval=20.0)
    looked(watch, NOTHING, NOTHING)
    await watch.until_next(20.0)
    assert teller.asked == [20.0]


async def test_who_is_told_long_after_a_look_looks_at_once(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("wds.delivery.poll_scheduler.monotonic", lambda: now)
    watch = lookout(Teller())
    looked(watch, NOTHING, NOTHING)
    assert await watch.until_next(POLL_S) == pytest.approx(LOOKS_APART_S)
    now += LOOKS_APART_S / 2
    assert await watch.until_next(POLL_S) == pytest.approx(LOOKS_APART_S / 2)
    now += 1
    assert await watch.until_next(POLL_S) == 0


async def test_who_was_outrun_is_later_after_being_told(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("wds.delivery.poll_scheduler.monotonic", lambda: now)
    watch = lookout(Teller())
    looked(watch, *[OUTRUN] * 10)
    now += 1
    waits = [await watch.until_next(POLL_S) for _ in range(100)]
    assert SPREAD_MOST_S / 2 < max(waits) <= SPREAD_MOST_S
    looked(watch, *[FOUND] * 10, NOTHING, NOTHING)
    now += 1
    assert await watch.until_next(POLL_S) == 0


async def test_who_is_stopping_does_not_listen():
    teller, stopping = Teller(), asyncio.Event()
    watch = lookout(teller, stopping=stopping)
    looked(watch, NOTHING, NOTHING)
    stopping.set()
    assert await watch.until_next(POLL_S) == POLL_S
    assert teller.asked == []


async def test_stopping_ends_the_wait_to_be_told():
    stopping, over = asyncio.Event(), asyncio.Event()

    async def never(_):
        stopping.set()
        try:
            await asyncio.Event().wait()
        finally:
            over.set()

    watch = lookout(never, stopping=stopping)
    looked(watch, NOTHING, NOTHING)
    assert await asyncio.wait_for(watch.until_next(POLL_S), 5) == POLL_S
    await asyncio.wait_for(over.wait(), 5)


async def test_a_defect_of_who_tells_is_not_swallowed():
    watch = lookout(Teller(answer=RuntimeError("defect")))
    looked(watch, NOTHING, NOTHING)
    with pytest.raises(RuntimeError, match="defect"):
        await watch.until_next(POLL_S)
