"""Answers that are shared and kept: never two questions at once, never for too long."""

from __future__ import annotations

import asyncio

import pytest

from wds.console.cache import FACTOR, LEAST_S, MOST_KEPT, MOST_S, Recall


class Asked:
    """Counts how often it is asked; each answer takes `cost_s` of the clock."""

    def __init__(self, cost_s=0.0):
        self.times = 0
        self.now = 100.0
        self.cost_s = cost_s
        self.recall = Recall(lambda: self.now)

    async def find(self):
        self.times += 1
        self.now += self.cost_s
        await asyncio.sleep(0)
        return self.times

    async def ask(self, question="q"):
        return await self.recall.ask(question, self.find)


async def test_all_who_ask_at_once_share_one_answer():
    asked = Asked()
    assert await asyncio.gather(*(asked.ask() for _ in range(20))) == [1] * 20


@pytest.mark.parametrize(("cost_s", "kept_s"), [(0, LEAST_S), (2, 2 * FACTOR), (30, MOST_S)])
async def test_an_answer_is_kept_by_what_it_cost(cost_s, kept_s):
    asked = Asked(cost_s)
    assert await asked.ask() == 1
    asked.now += kept_s - 0.01
    assert await asked.ask() == 1
    asked.now += 0.02
    assert await asked.ask() == 2


async def test_a_failure_is_told_to_all_who_wait_and_then_asked_anew():
    asked = Asked()

    async def fail():
        await asyncio.sleep(0)
        raise OSError

    told = await asyncio.gather(
        *(asked.recall.ask("q", fail) for _ in range(3)), return_exceptions=True
    )
    assert [type(each) for each in told] == [OSError] * 3
    assert await asked.ask() == 1


async def test_one_who_no_longer_waits_takes_the_answer_from_nobody():
    asked = Asked()
    gone = asyncio.create_task(asked.ask())
    other = asyncio.create_task(asked.ask())
    await asyncio.sleep(0)
    gone.cancel()
    assert await other == 1
    assert gone.cancelled()


async def test_what_is_remembered_is_bounded():
    asked = Asked()
    for number in range(MOST_KEPT * 3):
        await asked.ask(number)
    assert len(asked.recall._known) == MOST_KEPT
