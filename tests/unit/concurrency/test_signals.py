"""Signals that tests wait for."""

from __future__ import annotations

import asyncio

from wds.concurrency.signals import Signal


async def test_signal_wait_returns_after_the_requested_number_of_firings():
    signal = Signal()
    signal.fire()
    waiting = asyncio.create_task(signal.wait(2))
    await asyncio.sleep(0)
    signal.fire()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    signal.fire()
    await asyncio.wait_for(waiting, 5)
    assert signal.count == 3


async def test_signal_fire_wakes_all_waiters():
    signal = Signal()
    waiting = [asyncio.create_task(signal.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    signal.fire()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)


async def test_signal_wait_ignores_earlier_firings():
    signal = Signal()
    signal.fire()
    waiting = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    signal.fire()
    signal.fire()
    await asyncio.wait_for(waiting, 5)
