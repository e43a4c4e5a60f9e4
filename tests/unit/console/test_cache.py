"""The single-flight cache: one query per key at a time, and results kept for a bounded time."""

from __future__ import annotations

import asyncio

import pytest

from wds.console.cache import KEEP_FACTOR, MAX_ENTRIES, MAX_KEEP_S, MIN_KEEP_S, SingleFlightCache


class Counter:
    """A query that returns how often it ran; each run takes `cost_s` of the clock."""

    def __init__(self, cost_s=0.0):
        self.runs = 0
        self.now = 100.0
        self.cost_s = cost_s
        self.cache = SingleFlightCache(lambda: self.now)

    async def query(self):
        self.runs += 1
        self.now += self.cost_s
        await asyncio.sleep(0)
        return self.runs

    async def get(self, key="k"):
        return await self.cache.get(key, self.query)


async def test_cache_runs_one_query_for_concurrent_callers():
    counter = Counter()
    assert await asyncio.gather(*(counter.get() for _ in range(20))) == [1] * 20


@pytest.mark.parametrize(
    ("cost_s", "kept_s"), [(0, MIN_KEEP_S), (2, 2 * KEEP_FACTOR), (30, MAX_KEEP_S)]
)
async def test_cache_keeps_a_result_in_proportion_to_its_cost(cost_s, kept_s):
    counter = Counter(cost_s)
    assert await counter.get() == 1
    counter.now += kept_s - 0.01
    assert await counter.get() == 1
    counter.now += 0.02
    assert await counter.get() == 2


async def test_cache_passes_an_error_to_all_waiters_and_does_not_keep_it():
    counter = Counter()

    async def fail():
        await asyncio.sleep(0)
        raise OSError

    results = await asyncio.gather(
        *(counter.cache.get("k", fail) for _ in range(3)), return_exceptions=True
    )
    assert [type(each) for each in results] == [OSError] * 3
    assert await counter.get() == 1


async def test_cache_finishes_a_query_whose_first_caller_was_cancelled():
    counter = Counter()
    first = asyncio.create_task(counter.get())
    second = asyncio.create_task(counter.get())
    await asyncio.sleep(0)
    first.cancel()
    assert await second == 1
    assert first.cancelled()


async def test_cache_keeps_only_the_newest_results():
    counter = Counter()
    for key in range(MAX_ENTRIES * 3):
        await counter.get(key)
    newest = range(MAX_ENTRIES * 2, MAX_ENTRIES * 3)
    assert [await counter.get(key) for key in newest] == [key + 1 for key in newest]
    assert counter.runs == MAX_ENTRIES * 3
    assert await counter.get(MAX_ENTRIES * 2 - 1) == MAX_ENTRIES * 3 + 1
