"""MongoDB and Redis killed, stopped and cut off, under load."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import PyMongoError
from redis.asyncio import Redis

from tests.faults.harness import System, system
from tests.faults.receiver import receiving_apart
from tests.support import eventually
from wds.local import embedded_engines

if TYPE_CHECKING:
    from collections.abc import Sequence

ACK_AGAIN_S = 15.0
"""Seconds within which ingest must answer 202 again after the primary has failed."""


async def primary_of(members: Sequence[embedded_engines.Server]) -> embedded_engines.Server:
    """Return the primary; wait for an election to end."""

    async def look() -> embedded_engines.Server | None:
        for server in members:
            client: AsyncIOMotorClient[Any] = AsyncIOMotorClient(
                "127.0.0.1",
                server.port,
                directConnection=True,
                serverSelectionTimeoutMS=300,
                socketTimeoutMS=1000,
            )
            try:
                if (await client.admin.command("hello")).get("isWritablePrimary"):
                    return server
            except PyMongoError:
                continue
            finally:
                client.close()
        return None

    found = await eventually(look, within_s=60)
    assert found is not None
    return found


async def acknowledged_again(running: System, since: float) -> float:
    """Wait for a 2xx to a request that began after `since`; return the seconds from then."""

    async def look() -> float:
        fresh = [at - since for at, took in running.sender.answered_at if at - took > since]
        return min(fresh, default=0.0)

    return await eventually(look, within_s=60)


async def kill(running: System) -> None:
    victim = await primary_of(running.mongods)
    number = running.mongods.index(victim)
    await victim.stop(signal.SIGKILL)
    await primary_of([each for each in running.mongods if each is not victim])
    restarted = await embedded_engines.start_mongod(
        running.home / f"mongo-{number}",
        port=victim.port,
        extra=("--setParameter", "enableTestCommands=1"),
    )
    running.mongods[number] = running.until_the_end(restarted)


async def step_down(running: System) -> None:
    victim = await primary_of(running.mongods)
    client: AsyncIOMotorClient[Any] = AsyncIOMotorClient(
        "127.0.0.1", victim.port, directConnection=True
    )
    await client.admin.command({"replSetStepDown": 5, "force": True})
    client.close()


async def stall(running: System) -> None:
    victim = await primary_of(running.mongods)
    victim.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(20)
    victim.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("fault", [kill, step_down, stall], ids=lambda fault: fault.__name__)
async def test_primary_failure_loses_no_acknowledged_event(tmp_path, seed, scale, fault):
    times = {kill: scale.primaries, step_down: scale.primaries, stall: scale.stalls}[fault]
    slowest = 0.0
    async with system(tmp_path, seed=seed, nodes=3, dispatchers=2) as running:
        sending = asyncio.create_task(running.sender.send(10**6, connections=4))
        for _ in range(times):
            await asyncio.sleep(running.rng.uniform(0.5, 1.5))
            gone = time.monotonic()
            hurting = asyncio.create_task(fault(running))
            await asyncio.sleep(0.5)
            slowest = max(slowest, await acknowledged_again(running, gone + 0.5) + 0.5)
            await hurting
        running.sender.stopped = True
        await sending
        await running.settled(len(running.sender.acknowledged), within_s=120)
        verdict = await running.verdict()
    running.report(f"{fault.__name__} x {times}: 202 again after at most {slowest:.1f} s")
    assert verdict.faults == {}
    assert slowest <= ACK_AGAIN_S
    assert len(running.sender.acknowledged) > 100


@pytest.mark.parametrize("command", ["insert", "findAndModify", "update"])
@pytest.mark.parametrize("when", ["before", "after", "unsure"])
async def test_write_whose_connection_is_cut_counts_once(tmp_path, seed, scale, command, when):
    """Cut before the write, or after it, or have mongod answer that the outcome is unknown."""
    # A claim of a single event is a findAndModify: have one due at a time.
    one_by_one = command == "findAndModify"
    scarce = {"WDS_CONCURRENCY": "1"} if one_by_one else {}
    proxied = when == "after"
    async with system(
        tmp_path, seed=seed, dispatchers=2, settings=scarce, proxied=proxied
    ) as running:

        async def inject() -> int:
            """Fail three writes; return the number of writes failed so far."""
            if when == "after":
                running.proxy.command, running.proxy.left = command, 3
                return running.proxy.cut
            cut: dict[str, Any] = {"failCommands": [command], "appName": "wds"}
            if when == "before":
                cut["closeConnection"] = True
            else:
                cut["writeConcernError"] = {"code": 64, "errmsg": "not confirmed"}
            fail = {"configureFailPoint": "failCommand", "mode": {"times": 3}, "data": cut}
            answer = await running.db.client.admin.command(fail)
            return int(answer["count"])

        connections = 1 if one_by_one else 4
        sending = asyncio.create_task(running.sender.send(10**6, connections=connections))
        failed = 0
        while failed < scale.cuts:
            before = failed
            failed = await eventually(inject, lambda now, before=before: now > before)
            await acknowledged_again(running, time.monotonic())
            await asyncio.sleep(running.rng.uniform(0.01, 0.05))
        running.sender.stopped = True
        await sending
        await running.settled(len(running.sender.acknowledged), within_s=120)
        verdict = await running.verdict()
    running.report(f"{failed} x {command} cut {when}, {len(running.sender.acknowledged)} events")
    assert verdict.faults == {}
    assert len(running.sender.acknowledged) > scale.cuts // 3


async def killed(running: System, client: Redis) -> None:
    del client
    port = running.redis.port
    await running.redis.stop(signal.SIGKILL)
    await asyncio.sleep(1)
    restarted = await embedded_engines.start_redis(running.home / "redis", port=port)
    running.redis = running.until_the_end(restarted)


async def stopped(running: System, client: Redis) -> None:
    del client
    running.redis.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(running.redis_stall_s)
    running.redis.process.send_signal(signal.SIGCONT)


async def flushed(_: System, client: Redis) -> None:
    await client.flushall()


async def without_scripts(_: System, client: Redis) -> None:
    await client.script_flush()


async def without_memory(_: System, client: Redis) -> None:
    await client.config_set("maxmemory", 1)
    await asyncio.sleep(1)
    await client.config_set("maxmemory", 0)


def p99(took: list[float]) -> float:
    return sorted(took)[int(len(took) * 0.99)] if took else 0.0


@pytest.mark.parametrize(
    "fault",
    [killed, stopped, flushed, without_scripts, without_memory],
    ids=lambda fault: fault.__name__,
)
async def test_rate_limit_holds_through_redis_failures(tmp_path, seed, scale, fault):
    limit = 20
    settings = {"WDS_RATE_LIMIT": str(limit), "WDS_LEASE": "4"}
    slowest = 0.0
    async with (
        receiving_apart() as receiver,
        system(tmp_path, seed=seed, settings=settings, receiver=receiver) as running,
    ):

        async def sent_since(instant: float) -> list[float]:
            await receiver.fetch()
            return [each.at for each in receiver.requests if each.at > instant]

        async def trickle() -> None:
            for number in range(1_000_000):
                if over.is_set():
                    return
                await running.sender.send(1, connections=1, prefix=f"trickle-{number}-")
                await asyncio.sleep(0.1)

        running.redis_stall_s = scale.redis_stall_s
        client = Redis.from_url(running.env["WDS_REDIS_URL"])
        over = asyncio.Event()
        trickling = asyncio.create_task(trickle())
        outages = []
        for _ in range(scale.outages):
            await running.sender.send(limit * 2, prefix=f"more-{running.rng.random()}-")
            # Until the burst is delivered, so that its delay is not taken for the fault's.
            await asyncio.sleep(running.rng.uniform(1.2, 1.6))
            began = time.monotonic()
            await fault(running, client)
            back = time.monotonic()
            again = await eventually(lambda back=back: sent_since(back))
            outages.append((began, min(again)))
            slowest = max(slowest, min(again) - back)
        over.set()
        await trickling
        count = len(running.sender.acknowledged)
        await running.settled(count, within_s=60 + 1.2 * count / limit)
        await client.aclose()
        await receiver.fetch()
        verdict = await running.verdict()
    during, otherwise = [], []
    for at, took in running.sender.answered_at:
        inside = any(began <= at - took and at <= ended for began, ended in outages)
        (during if inside else otherwise).append(took)
    running.report(
        f"{fault.__name__} x {scale.outages}: sends again after at most {slowest:.2f} s, most in a"
        f" second {verdict.most_in_a_second}, ingest p99 {p99(during):.3f} s in {len(during)}"
        f" events during outages, {p99(otherwise):.3f} s in {len(otherwise)} others"
    )
    assert verdict.faults == {}
    assert slowest <= 2
    # If Redis forgets the slots it granted, one window may hold twice the limit; else none may.
    forgets = fault in (killed, flushed)
    assert verdict.most_in_a_second <= limit * (2 if forgets else 1)
