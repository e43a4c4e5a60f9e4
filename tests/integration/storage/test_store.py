"""Opening and closing a store, its clock, and calls that are cancelled."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.support import clock_caught_up, new_event
from wds.domain.errors import StandaloneRefusedError, StoreUnavailableError
from wds.local import embedded_engines
from wds.storage.store import Store


async def test_store_close_waits_for_the_end_of_an_abandoned_transaction(settings, db, monkeypatch):
    monkeypatch.setattr("wds.storage.event_writer.WRITE_BUDGET_S", 0.3)
    store = Store(settings.mongo_url, settings.mongo_db)
    await store.open()
    await store.ping()
    stall = {"failCommands": ["insert"], "blockConnection": True, "blockTimeMS": 600}
    await db.client.admin.command(
        "configureFailPoint", "failCommand", mode={"times": 1}, data=stall
    )
    with pytest.raises(StoreUnavailableError):
        await store.writer.insert_all([new_event()])
    assert store._mongo._ending_sessions
    await store.close()
    assert not store._mongo._ending_sessions


async def test_store_close_leaves_no_task_or_connection_if_the_server_hangs(settings, db):
    before = asyncio.all_tasks()
    store = Store(settings.mongo_url, settings.mongo_db)
    await store.open()
    await store.writer.insert_all([new_event()])
    stall = {"failCommands": ["endSessions"], "blockConnection": True, "blockTimeMS": 8000}
    await db.client.admin.command(
        "configureFailPoint", "failCommand", mode={"times": 2}, data=stall
    )
    try:
        async with asyncio.timeout(5):
            await store.close()
    finally:
        await db.client.admin.command("configureFailPoint", "failCommand", mode="off")
    assert asyncio.all_tasks() == before
    [server] = store._mongo._queue_client._topology._servers.values()
    assert not server.pool.conns


@pytest.mark.parametrize("what", ["ping", "report", "insert", "claim"])
async def test_store_calls_cancelled_during_an_answer_end_as_cancelled(store, what):
    """Otherwise a cancelled loop would begin its next turn, and its owner wait for ever."""
    calls = {
        "ping": store.ping,
        "report": lambda: store.replicas.report(owner="o", role="r", totals={"claimed": 1}),
        "insert": lambda: store.writer.insert([new_event()]),
        "claim": lambda: store.queue.claim("default", 2, owner="d", lease_s=0.001, max_attempts=99),
    }
    await store.writer.insert([new_event(), new_event()])
    await clock_caught_up(store)
    cancelled = 0
    for passes in range(60):
        await store.ping()  # makes a connection: the last cancellation has closed one
        task = asyncio.create_task(calls[what]())
        for _ in range(passes):
            await asyncio.sleep(0)
        if task.cancel():
            await asyncio.wait({task})
            assert task.cancelled(), passes
            cancelled += 1
    assert cancelled > 3
    [server] = store._mongo._queue_client._topology._servers.values()
    assert (server.pool.active_sockets, server.pool.requests) == (0, 0)


async def test_store_now_reads_the_databases_clock_again_after_a_suspension(store, monkeypatch):
    """Otherwise events would be stored with a past hour, which may have been counted already."""
    await store.now()
    asked = []
    hello, clock = store._mongo.hello, time.clock_gettime

    async def recorded():
        asked.append(True)
        return await hello()

    monkeypatch.setattr(store._mongo, "hello", recorded)
    await store.now()
    assert not asked
    monkeypatch.setattr(
        time, "clock_gettime", lambda of: clock(of) + 60 * (of == time.CLOCK_BOOTTIME)
    )
    await store.now()
    assert asked


async def test_store_open_refuses_a_standalone_server_and_names_the_remedy(tmp_path):
    binary = embedded_engines._binary("mongod", embedded_engines._MONGOD)
    port = embedded_engines.free_port()
    arguments = ["--dbpath", str(tmp_path), "--port", str(port), "--bind_ip", "127.0.0.1"]
    process = await asyncio.create_subprocess_exec(
        str(binary), *arguments, "--nounixsocket", stdout=asyncio.subprocess.DEVNULL
    )
    store = Store(f"mongodb://127.0.0.1:{port}", "wds")
    try:
        with pytest.raises(StandaloneRefusedError, match=r"--replSet .* rs.initiate"):
            await store.open()
    finally:
        await store.close()
        process.terminate()
        await process.wait()
