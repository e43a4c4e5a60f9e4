"""The rate limit over several dispatchers for seconds to minutes, by the receiver's clock."""

from __future__ import annotations

import asyncio

from tests.faults.harness import system
from tests.faults.receiver import receiving_apart


async def test_rate_limit_of_50_over_four_dispatchers_is_kept_and_used(tmp_path, seed, scale):
    limit = 50
    count = limit * scale.limit_s
    settings = {"WDS_RATE_LIMIT": str(limit), "WDS_LEASE": "5"}
    async with (
        receiving_apart() as receiver,
        system(tmp_path, seed=seed, settings=settings, receiver=receiver) as running,
    ):
        sending = asyncio.create_task(running.sender.send(count))
        await running.settled(count, within_s=scale.limit_s * 2)
        await sending
        await receiver.fetch()
        verdict = await running.verdict(overdue_s=count / limit + 60)
    instants = sorted(request.at for request in running.receiver.requests)
    busy = instants[2 * limit :]  # earlier, there may not have been an event for every slot
    windows = (len(busy) - 1) // limit
    used = windows / (busy[windows * limit] - busy[0])
    running.report(f"{used:.1%} used, most in a second {verdict.most_in_a_second}")
    assert verdict.faults == {}
    assert verdict.duplicated == {}
    assert verdict.most_in_a_second <= limit
    assert used >= 0.95
