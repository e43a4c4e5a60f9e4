"""Ingests and dispatchers killed, stopped and restarted, under load."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter

from aiohttp import web

from tests.faults.harness import Replica, System, system
from tests.support import eventually


async def slowly(_: web.Request) -> web.Response:
    """Answer after 50 ms, so that a killed dispatcher has requests in flight."""
    await asyncio.sleep(0.05)
    return web.Response()


async def test_dispatchers_killed_under_load_lose_nothing(tmp_path, seed, scale):
    async with system(tmp_path, seed=seed) as running:
        running.receiver.answer = slowly
        sending = asyncio.create_task(running.sender.send(scale.events))
        killed: dict[str, float] = {}
        for _ in range(scale.kills):
            await asyncio.sleep(running.rng.uniform(0.05, 0.4))
            victim = running.rng.choice(running.dispatchers)
            killed[victim.name] = time.monotonic()
            victim.signal(signal.SIGKILL)
            await victim.start()
        await sending
        await running.settled(scale.events, within_s=120)
        verdict = await running.verdict()
    assert verdict.faults == {}
    assert len(running.sender.acknowledged) == scale.events
    exposed = sum((running.receiver.exposed(*each) for each in killed.items()), Counter())
    twice = Counter(verdict.duplicated)
    running.report(
        f"{scale.kills} kills, {exposed.total()} in flight or just answered at the victims,"
        f" {verdict.lost_attempts} attempts lost, {twice.total()} sent twice"
    )
    assert twice <= exposed, "sent twice without having been in flight at a victim"
    assert verdict.lost_attempts > 0, "no fault was felt"


async def test_control_verdict_finds_a_lost_event_and_a_second_request(tmp_path, seed):
    async with system(tmp_path, seed=seed, dispatchers=1, ingests=1) as running:
        await running.sender.send(20)
        await running.settled(20, within_s=30)
        ids = sorted(running.sender.acknowledged.values())
        await running.db.events.delete_one({"_id": ids[0]})
        again = [each for each in running.receiver.requests if each.headers["webhook-id"] == ids[1]]
        running.receiver.requests += again
        verdict = await running.verdict()
    assert verdict.lost == [ids[0]]
    assert verdict.duplicated == {ids[1]: 1}
    assert verdict.unexplained == [ids[1]]


async def test_event_of_a_killed_dispatcher_is_sent_again_after_its_lease(tmp_path, seed):
    release = asyncio.Event()

    async def hang_at_first(_: web.Request) -> web.Response:
        if len(running.receiver.requests) == 1:
            await release.wait()
        return web.Response()

    async with system(tmp_path, seed=seed, dispatchers=1, ingests=1) as running:
        running.receiver.answer = hang_at_first
        await running.sender.send(1)
        await eventually(lambda: len(running.receiver.requests))
        running.dispatchers[0].signal(signal.SIGKILL)
        await running.dispatchers[0].start()
        await running.settled(1, within_s=20)
        release.set()
        assert len(running.receiver.requests) == 2
        event = await running.db.events.find_one()
        verdict = await running.verdict()
    assert verdict.faults == {}
    # Between the leases, by the database's clock: a request arrives after its lease began.
    leased, again = (attempt["timestamp"] for attempt in event["attempts"])
    lease = float(running.env["WDS_LEASE"])
    assert lease <= (again - leased).total_seconds() <= lease + 2


async def test_ingests_killed_under_load_store_one_event_per_key(tmp_path, seed, scale):
    async with system(tmp_path, seed=seed) as running:
        sending = asyncio.create_task(running.sender.send(scale.events))
        for _ in range(max(scale.kills // 2, 4)):
            await asyncio.sleep(running.rng.uniform(0.05, 0.3))
            victim = running.rng.choice(running.ingests)
            victim.signal(signal.SIGKILL)
            await victim.start()
            await victim.ready()
        await sending
        await running.settled(scale.events, within_s=120)
        verdict = await running.verdict()
        stored = await running.db.events.count_documents({})
    assert verdict.faults == {}
    assert verdict.duplicated == {}
    assert stored == len(running.sender.acknowledged) == scale.events
    assert running.sender.refused > 0, "no fault was felt"


async def holds_leases(running: System, dispatchers: list[Replica]) -> bool:
    """Tell whether one of these stopped dispatchers holds a lease: another may hold them all."""
    pids = [each.process.process.pid for each in dispatchers if each.process is not None]
    owners = "|".join(f"-{pid}-" for pid in pids)
    return await running.db.events.find_one({"lease.owner": {"$regex": owners}}) is not None


async def test_dispatchers_stalled_past_their_lease_have_results_refused(tmp_path, seed, scale):
    async with system(tmp_path, seed=seed, ingests=1) as running:
        running.receiver.answer = slowly
        sending = asyncio.create_task(running.sender.send(scale.events, connections=4))
        lease = float(running.env["WDS_LEASE"])
        left = scale.stops
        while left > 0:
            await asyncio.sleep(running.rng.uniform(0.05, 0.2))
            stalled = running.rng.sample(running.dispatchers, min(left, 2))
            for victim in stalled:
                victim.signal(signal.SIGSTOP)
            if not (sending.done() or await holds_leases(running, stalled)):
                for victim in stalled:
                    victim.signal(signal.SIGCONT)
                continue
            await asyncio.sleep(lease + 0.5)
            for victim in stalled:
                victim.signal(signal.SIGCONT)
            left -= len(stalled)
        await sending
        await running.settled(scale.events, within_s=120)
        verdict = await running.verdict()
    assert verdict.faults == {}
    assert verdict.lost_attempts > 0, "no fault was felt"


async def test_rolling_restart_loses_nothing_and_sends_nothing_twice(tmp_path, seed, scale):
    async with system(tmp_path, seed=seed) as running:
        running.receiver.answer = slowly
        sending = asyncio.create_task(running.sender.send(scale.events))
        slowest = 0.0
        for number in range(max(scale.kills // 5, 4)):
            await asyncio.sleep(running.rng.uniform(0.1, 0.4))
            victim = running.dispatchers[number % len(running.dispatchers)]
            assert victim.process is not None
            started = time.monotonic()
            assert await victim.process.stop(signal.SIGTERM) == 0
            slowest = max(slowest, time.monotonic() - started)
            await victim.start()
            await victim.ready()  # a SIGTERM before that would end it without a drain
        await sending
        await running.settled(scale.events, within_s=120)
        verdict = await running.verdict()
    assert verdict.faults == {}
    assert verdict.duplicated == {}
    assert slowest <= float(running.env["WDS_REQUEST_TIMEOUT"]) + 5
