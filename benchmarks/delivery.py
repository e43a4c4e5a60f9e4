"""Rows about delivery: the rate over a backlog, the latency when idle, and the CPU when idle."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from benchmarks import stack
from benchmarks.fill import delivered, fill
from benchmarks.ingest import Load, drive, serving, wrk_load
from benchmarks.rows import Measure, Row, Sample, at_least, no_slower, within
from wds.signing.hmac_sha256 import sign
from wds.storage.store import Store
from wds.web.server import listening

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.peers import Peer
    from benchmarks.stack import Engines

CONCURRENCY = 128
"""The default of wds, and so that of the bare loop."""
PEER_FILL_S = 8
"""Seconds of load that create a peer's backlog: only the peer's own ingest can queue its tasks."""
IDLE_S = 20


def ours(engines: Engines, bodies: Sequence[bytes], count: int, dispatchers: int) -> Measure:
    """Measure how fast `dispatchers` of wds deliver a backlog."""

    async def measure() -> Sample:
        database = engines.database()
        await fill(engines, database, count, bodies)
        async with stack.sink(engines.home) as sink, AsyncExitStack() as running:
            env = engines.environ(database, WDS_DOWNSTREAM_URL=f"{sink.url}/")
            mongod = engines.mongod.cpu_s()
            rating = asyncio.create_task(sink.rate(count, 60 + count / 100))
            trees = []
            for _ in range(dispatchers):
                started = stack.command(stack.wds("dispatcher"), env, engines.home)
                trees.append((await running.enter_async_context(started)).tree)
            rate = await rating
            await settled(engines, database)
            used = sum(tree.cpu_s() for tree in trees)
            mongod = engines.mongod.cpu_s() - mongod
            twice = await sink.served() - count
        if twice:
            msg = f"{twice} deliveries too many"
            raise RuntimeError(msg)
        engines.drop()
        return Sample(rate, {"cpu_us": used / count * 1e6, "mongod_us": mongod / count * 1e6})

    return measure


async def settled(engines: Engines, database: str, within_s: float = 30) -> None:
    """Wait until no event is live."""
    events = engines.client[database].events
    deadline = time.monotonic() + within_s
    while events.count_documents({"next_attempt_at": {"$exists": True}}, limit=1, hint="claim"):
        if time.monotonic() > deadline:
            msg = "events were sent and not settled"
            raise RuntimeError(msg)
        await asyncio.sleep(0.05)


def of_peer(engines: Engines, peer: Peer, worker: str, load: Load) -> Measure:
    """Measure how fast a peer's worker delivers a backlog that its ingest accepted."""

    async def measure() -> Sample:
        database = engines.database()
        async with peer.serving(engines, database) as (_, url):
            await drive(url, load, PEER_FILL_S)
        count = engines.client[database].events.estimated_document_count()
        async with stack.sink(engines.home) as sink:
            rating = asyncio.create_task(sink.rate(count, 60 + count / 20))
            mongod = engines.mongod.cpu_s()
            async with peer.working(engines, database, worker, f"{sink.url}/") as running:
                rate = await rating
                used = running.tree.cpu_s()
            mongod = engines.mongod.cpu_s() - mongod
        engines.drop()
        peer.forget(engines)
        return Sample(rate, {"cpu_us": used / count * 1e6, "mongod_us": mongod / count * 1e6})

    return measure


def bare(engines: Engines, folder: Path, count: int) -> Measure:
    """Measure the loop that only posts: the upper bound of any dispatcher."""

    async def measure() -> Sample:
        async with stack.sink(engines.home) as sink:
            rating = asyncio.create_task(sink.rate(count, 60))
            arguments = stack.bench(
                "post_loop", f"{sink.url}/", str(count), str(CONCURRENCY), str(folder)
            )
            async with stack.command(arguments, {}, stack.ROOT, log=engines.home):
                return Sample(await rating)

    return measure


def claims_in_bulk(engines: Engines, bodies: Sequence[bytes], count: int) -> Measure:
    """Measure claims and settlements alone: the store in one process, without deliveries."""

    async def measure() -> Sample:
        database = engines.database()
        await fill(engines, database, count, bodies)
        store = Store(engines.mongo_url, database)
        await store.open()
        began = time.monotonic()
        done = 0
        while done < count:
            done += await claim_and_settle(store, CONCURRENCY)
        took = time.monotonic() - began
        await store.close()
        engines.drop()
        return Sample(count / took)

    return measure


async def claim_and_settle(store: Store, limit: int) -> int:
    """Claim up to `limit` events and record a success for each; return their number."""
    claimed = await store.queue.claim("default", limit, owner="bench", lease_s=30, max_attempts=5)
    if claimed.claims:
        await store.queue.settle([delivered(claim) for claim in claimed.claims])
    return len(claimed.claims)


def idle(engines: Engines, dispatchers: int, events: int) -> Measure:
    """Measure from before the POST to the receiver's handler, one event at a time."""

    async def measure() -> Sample:
        database = engines.database()
        arrived: dict[int, float] = {}
        accepted: dict[int, float] = {}
        all_arrived = asyncio.Event()

        async def receive(request: web.Request) -> web.Response:
            now = time.monotonic()
            arrived[json.loads(await request.read())["n"]] = now
            if len(arrived) == events:
                all_arrived.set()
            return web.Response()

        app = web.Application()
        app.router.add_post("/", receive)
        rng = random.Random(events)
        async with AsyncExitStack() as running:
            port = await running.enter_async_context(listening(app, "127.0.0.1", 0))
            _, url = await running.enter_async_context(serving(engines, database))
            env = engines.environ(database, WDS_DOWNSTREAM_URL=f"http://127.0.0.1:{port}/")
            trees = []
            for _ in range(dispatchers):
                started = stack.command(stack.wds("dispatcher"), env, engines.home)
                trees.append((await running.enter_async_context(started)).tree)
            session = await running.enter_async_context(aiohttp.ClientSession())
            await asyncio.sleep(2)
            for number in range(events):
                body = json.dumps({"n": number}).encode()
                headers = {
                    "Content-Type": "application/json",
                    "X-Webhook-Signature": sign(stack.SECRET, body),
                }
                accepted[number] = time.monotonic()
                async with session.post(url, data=body, headers=headers) as response:
                    response.raise_for_status()
                await asyncio.sleep(rng.uniform(0.1, 0.3))
            await asyncio.wait_for(all_arrived.wait(), 10)
            used = [tree.cpu_s() for tree in trees]
            await asyncio.sleep(IDLE_S)
            used = [tree.cpu_s() - before for tree, before in zip(trees, used, strict=True)]
        took = sorted((arrived[number] - accepted[number]) * 1000 for number in arrived)
        engines.drop()
        return Sample(
            statistics.median(took),
            {
                "p99_ms": took[int(len(took) * 0.99)],
                "idle_cpu_percent": max(used) / IDLE_S * 100,
            },
        )

    return measure


def rows(
    engines: Engines, peers: Sequence[Peer], bodies: Sequence[bytes], count: int, events: int
) -> list[Row]:
    """Return the rows about delivery: `count` events of backlog, `events` for latency."""
    folder = engines.home / "bodies"
    load = wrk_load(bodies, folder)
    sides: dict[str, Measure] = {"wds": ours(engines, bodies, count, 1)}
    for peer in peers:
        for worker in peer.workers:
            sides[f"{peer.name} {worker}"] = of_peer(engines, peer, worker, load)
    sides["bare POST loop"] = bare(engines, folder, count)
    sides["claim and settle only"] = claims_in_bulk(engines, bodies, count)
    return [
        Row(
            "delivery of a backlog",
            "events/s",
            sides,
            (*(at_least(8, peer.name) for peer in peers), at_least(0.3, "bare POST loop")),
        ),
        Row(
            "delivery by several dispatchers",
            "events/s",
            {
                "one": ours(engines, bodies, count, 1),
                "two": ours(engines, bodies, count, 2),
                "eight": ours(engines, bodies, count, 8),
            },
            (no_slower("two", 1.0, "one"), no_slower("eight", 0.8, "one")),
        ),
        Row(
            "latency when idle, POST to receiver",
            "ms",
            {"wds": idle(engines, 1, events), "three dispatchers": idle(engines, 3, events)},
            (
                within(30, "value", "ms (p50)"),
                within(80, "p99_ms", "ms"),
                within(2, "idle_cpu_percent", "% of a core"),
            ),
        ),
    ]
