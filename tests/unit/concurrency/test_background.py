"""Work beside a block ends with the block."""

from __future__ import annotations

import asyncio

import pytest

from wds.concurrency.background import beside


async def test_beside_runs_work_during_the_block_and_ends_it_afterwards():
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


async def test_beside_raises_the_exception_of_work():
    async def work():
        msg = "broken"
        raise LookupError(msg)

    with pytest.raises(LookupError):
        async with beside(work()):
            await asyncio.sleep(0)
