"""Rows about memory: a dispatcher with a large backlog, an ingest service under long load."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from benchmarks import stack
from benchmarks.fill import fill
from benchmarks.ingest import drive, serving, wrk_load
from benchmarks.rows import Measure, Row, Sample, within

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.stack import Engines, Tree

SAMPLE_INTERVAL_S = 0.25


async def most_memory(tree: Tree, during: asyncio.Task[object]) -> dict[str, float]:
    """Return the maximum of the memory in use, in MB, in each half of the time."""
    seen = []
    while not during.done():
        seen.append(tree.rss_mb())
        await asyncio.wait({during}, timeout=SAMPLE_INTERVAL_S)
    await during
    half = len(seen) // 2
    return {"first_half_mb": max(seen[:half]), "second_half_mb": max(seen[half:])}


def dispatcher(engines: Engines, bodies: Sequence[bytes], count: int) -> Measure:
    """Measure a dispatcher of wds that delivers a backlog."""

    async def measure() -> Sample:
        database = engines.database()
        await fill(engines, database, count, bodies)
        async with stack.sink(engines.home) as sink:
            env = engines.environ(database, WDS_DOWNSTREAM_URL=f"{sink.url}/")
            working = asyncio.create_task(sink.rate(count, 60 + count / 100))
            async with stack.command(stack.wds("dispatcher"), env, engines.home) as running:
                halves = await most_memory(running.tree, working)
        engines.drop()
        return Sample(max(halves.values()), halves)

    return measure


def ingest(engines: Engines, bodies: Sequence[bytes], seconds: int) -> Measure:
    """Measure an ingest service of wds under constant load."""
    load = wrk_load(bodies, engines.home / f"wrk-memory-{time.monotonic_ns()}")

    async def measure() -> Sample:
        database = engines.database()
        async with serving(engines, database) as (running, url):
            driving = asyncio.create_task(drive(url, load, seconds))
            halves = await most_memory(running.tree, driving)
        engines.drop()
        return Sample(max(halves.values()), halves)

    return measure


def rows(engines: Engines, bodies: Sequence[bytes], count: int, seconds: int) -> list[Row]:
    """Return the rows: a backlog of `count` events, `seconds` of load."""
    flat = (within(150, "value", "MB"),)
    return [
        Row(
            f"memory, dispatcher before {count:,} due events",
            "MB",
            {"wds": dispatcher(engines, bodies, count)},
            flat,
        ),
        Row(
            f"memory, ingest under {seconds} s of load",
            "MB",
            {"wds": ingest(engines, bodies, seconds)},
            flat,
        ),
    ]
