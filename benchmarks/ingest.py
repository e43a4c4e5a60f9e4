"""Rows about ingest: the events that one process acknowledges per second, and their cost."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pymongo.write_concern import WriteConcern

from benchmarks import stack
from benchmarks.payloads import wrk_script
from benchmarks.rows import Measure, Row, Sample, Target, at_least, within
from wds.domain.events import NewEvent, random_id
from wds.local import embedded_engines
from wds.storage import event_documents, indexes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from benchmarks.peers import Peer
    from benchmarks.stack import Engines, Running

CONNECTIONS = 64
LARGE_BYTES = 100_000
CONNECTIONS_LARGE = 8
"""For payloads beyond `LARGE_BYTES`: the ingest service would refuse more, to bound its memory."""
WARM_UP_S = 1
PATIENCE_S = 15
"""Seconds that an answer may take. With wrk's default of 2, a slow side would count as broken."""
BULK = 500
"""Documents in one bulk insert of the sync driver."""


@dataclass(frozen=True)
class Load:
    """The script that wrk runs, and its number of connections."""

    script: Path
    connections: int


async def drive(url: str, load: Load, seconds: int) -> dict[str, float]:
    """Let wrk post for `seconds`; return its counts: requests, seconds, p50_ms, p99_ms ..."""
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{load.connections}", f"-d{seconds}", "--timeout", f"{PATIENCE_S}s"),
        *("-s", str(load.script), url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await process.communicate())[0].decode()
    for line in output.splitlines():
        if line.startswith("RESULT "):
            counts: dict[str, float] = json.loads(line.removeprefix("RESULT "))
            return counts
    msg = f"wrk failed: {output[-500:]}"
    raise RuntimeError(msg)


def wrk_load(bodies: Sequence[bytes], home: Path) -> Load:
    """Return the load that posts `bodies`, signed, from files in `home`."""
    large = max(map(len, bodies)) > LARGE_BYTES
    return Load(wrk_script(bodies, stack.SECRET, home), CONNECTIONS_LARGE if large else CONNECTIONS)


async def loaded(engines: Engines, service: Running, url: str, load: Load, seconds: int) -> Sample:
    """Measure one running service; every answer must be a 2xx."""
    await drive(url, load, WARM_UP_S)
    ours, mongod = service.tree.cpu_s(), engines.mongod.cpu_s()
    counted = await drive(url, load, seconds)
    ours, mongod = service.tree.cpu_s() - ours, engines.mongod.cpu_s() - mongod
    if counted["refused"] or counted["broken"]:
        msg = f"{counted['refused']:g} refused, {counted['broken']:g} broken"
        raise RuntimeError(msg)
    return Sample(
        counted["requests"] / counted["seconds"],
        {
            "p50_ms": counted["p50_ms"],
            "p99_ms": counted["p99_ms"],
            "cpu_us": ours / counted["requests"] * 1e6,
            "mongod_us": mongod / counted["requests"] * 1e6,
        },
    )


@asynccontextmanager
async def serving(engines: Engines, database: str) -> AsyncIterator[tuple[Running, str]]:
    """Run one ingest service of wds; yield it and its URL."""
    port = embedded_engines.free_port()
    env = engines.environ(database, WDS_PORT=str(port))
    async with stack.command(stack.wds("ingest"), env, engines.home, port=port) as running:
        yield running, f"http://127.0.0.1:{port}/webhooks/ingest"


def ours(engines: Engines, load: Load, seconds: int) -> Measure:
    """Measure the ingest of wds; every event it acknowledged must be in the database."""

    async def measure() -> Sample:
        database = engines.database()
        async with serving(engines, database) as (running, url):
            sample = await loaded(engines, running, url, load, seconds)
        stored = engines.client[database].events.estimated_document_count()
        if stored < sample.value * seconds * 0.99:
            msg = f"{stored} stored of {sample.value * seconds:.0f} acknowledged"
            raise RuntimeError(msg)
        engines.drop()
        return sample

    return measure


def bare(engines: Engines, load: Load, seconds: int) -> Measure:
    """Measure the handler that stores nothing."""

    async def measure() -> Sample:
        port = embedded_engines.free_port()
        arguments = stack.bench("bare_handler", str(port))
        env = engines.environ("none")
        async with stack.command(
            arguments, env, stack.ROOT, port=port, log=engines.home
        ) as running:
            url = f"http://127.0.0.1:{port}/webhooks/ingest"
            return await loaded(engines, running, url, load, seconds)

    return measure


def of_peer(engines: Engines, peer: Peer, load: Load, seconds: int) -> Measure:
    """Measure a peer's ingest."""

    async def measure() -> Sample:
        database = engines.database()
        async with peer.serving(engines, database) as (running, url):
            sample = await loaded(engines, running, url, load, seconds)
        engines.drop()
        peer.forget(engines)
        return sample

    return measure


def documents(bodies: Sequence[bytes], now: datetime, first: int) -> list[dict[str, Any]]:
    """Return `BULK` new events as stored documents."""
    return [
        event_documents.event_document(
            NewEvent(
                id=random_id(now, number.to_bytes(10)),
                source="default",
                payload=bodies[number % len(bodies)],
                content_type="application/json",
                event_type=f"kind-{number % 20}",
            ),
            now,
        )
        for number in range(first, first + BULK)
    ]


def in_bulk(engines: Engines, bodies: Sequence[bytes], seconds: int) -> Measure:
    """Measure inserts by one thread of the synchronous driver: same documents, same indexes."""

    def insert() -> tuple[int, float]:
        collection = engines.client[engines.database()].get_collection(
            "events", write_concern=WriteConcern("majority", j=True)
        )
        collection.create_indexes(indexes.EVENT_INDEXES)
        now = engines.client.admin.command("hello")["localTime"]
        done, began = 0, time.monotonic()
        while time.monotonic() - began < seconds:
            collection.insert_many(documents(bodies, now, done), ordered=False)
            done += BULK
        return done, time.monotonic() - began

    async def measure() -> Sample:
        mongod = engines.mongod.cpu_s()
        done, took = await asyncio.to_thread(insert)
        mongod = engines.mongod.cpu_s() - mongod
        engines.drop()
        return Sample(done / took, {"mongod_us": mongod / done * 1e6})

    return measure


def rows(
    engines: Engines,
    peers: Sequence[Peer],
    bodies: dict[str, Sequence[bytes]],
    seconds: int,
) -> list[Row]:
    """Return one row for each set of payloads; only the first has every target."""
    table = []
    for name, each in bodies.items():
        load = wrk_load(each, engines.home / f"wrk-{len(table)}")
        sides: dict[str, Measure] = {"wds": ours(engines, load, seconds)}
        for peer in peers:
            sides[peer.name] = of_peer(engines, peer, load, seconds)
        sides["bare handler"] = bare(engines, load, seconds)
        sides["mongod in bulk"] = in_bulk(engines, each, seconds)
        targets: list[Target] = []
        if name == "600 bytes":
            targets += [at_least(9, peer.name) for peer in peers]
        elif not table:
            targets += [at_least(6, peer.name) for peer in peers]
            targets += [at_least(0.45, "bare handler"), within(60, "p99_ms", "ms")]
        table.append(Row(f"ingest, {name}", "events/s", sides, tuple(targets)))
    return table
