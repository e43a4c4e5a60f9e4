"""Work beside a block ends with the block."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from wds.background import beside, ended


async def test_work_runs_beside_the_block_and_is_over_after_it():
    said = []

    async def work():
        try:
            said.append("begun")
            await asyncio.Event().wait()
        finally:
            said.append("over")

    async with beside(work()):
        await asyncio.sleep(0)
        assert said == ["begun"]
    assert said == ["begun", "over"]


async def test_what_work_fails_with_is_not_lost():
    async def work():
        msg = "broken"
        raise LookupError(msg)

    with pytest.raises(LookupError):
        async with beside(work()):
            await asyncio.sleep(0)


async def test_a_task_that_a_cancellation_was_lost_on_is_told_again():
    lost = 0

    async def deaf():
        nonlocal lost
        while lost < 2:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            lost += 1
        await asyncio.Event().wait()

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    await asyncio.wait_for(ended(task), 5)
    assert task.cancelled() and lost == 2
