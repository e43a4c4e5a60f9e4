"""Work beside a block ends with the block."""

from __future__ import annotations

import asyncio

import pytest

from wds.concurrency.background import beside


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
