"""Webhooks in at one end, deliveries out at the other, through the processes a user runs."""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
from contextlib import AsyncExitStack
from datetime import datetime, timedelta

import aiohttp
import pytest

from tests.e2e import processes
from tests.support import eventually, receiving, signed
from wds.local import embedded_engines
from wds.local.replica_set import initiate_replica_set


@pytest.fixture
def env(engines, db):
    """Settings of the processes; the limit's window is in a Redis database of its own."""
    redis_url = engines.redis_url.rsplit("/", 1)[0] + "/1"
    return {**engines.environ(), "WDS_MONGO_DB": db.name, "WDS_REDIS_URL": redis_url}


async def post(url: str, bodies: list[bytes]) -> list[str]:
    """Send signed events and return their ids; every one must be taken."""
    ids = []
    async with aiohttp.ClientSession() as session:
        for body in bodies:
            target = f"{url}/webhooks/ingest"
            async with session.post(target, data=body, headers=signed(body)) as response:
                assert response.status == 202
                ids.append((await response.json())["id"])
    return ids


def bodies(count: int) -> list[bytes]:
    return [json.dumps({"type": "test", "n": number}).encode() for number in range(count)]


async def finished(db, count: int):
    final = {"status": {"$in": ["DELIVERED", "FAILED_PERMANENTLY"]}}
    return await eventually(
        lambda: db.events.count_documents(final), lambda seen: seen == count, within_s=60
    )


@pytest.mark.alone
async def test_pipeline_of_five_processes_sends_all_once_at_the_rate_limit(env, db, tmp_path):
    """No faults: sixty events, one request each, never refused by the receiver's own limit."""
    count, limit = 60, 3
    env = {**env, "WDS_MOCK_FAILURE_RATE": "0"}
    async with AsyncExitStack() as stack:
        downstream = await stack.enter_async_context(
            processes.mock({k: v for k, v in env.items() if k != "WDS_REDIS_URL"}, cwd=tmp_path)
        )
        env["WDS_DOWNSTREAM_URL"] = f"{downstream.url}/downstream/receive"
        for half in (bodies(count)[::2], bodies(count)[1::2]):
            ingest = await stack.enter_async_context(processes.ingest(env, cwd=tmp_path))
            await post(ingest.url, half)
        for _ in range(3):
            await stack.enter_async_context(processes.dispatcher(env, cwd=tmp_path))
        await finished(db, count)
        stats = await processes.get_json(f"{downstream.url}/downstream/stats")
    assert stats == {
        "received": count,
        "accepted": count,
        "limited": 0,
        "failed": 0,
        "repeated": 0,
        "most_in_one_second": limit,
    }
    documents = await db.events.find().to_list(None)
    assert {document["status"] for document in documents} == {"DELIVERED"}
    sent = sorted(document["attempts"][0]["timestamp"] for document in documents)
    # The time of each `limit` of them: few may be longer, where the machine had a pause.
    seconds = sorted(
        (after - before).total_seconds() for before, after in zip(sent, sent[limit:], strict=False)
    )
    assert statistics.median(seconds) <= 1 / 0.95
    assert seconds[len(seconds) * 3 // 4] <= 1.2
    needed_s, pause_s = (count - limit) / limit, 3
    assert (sent[-1] - sent[0]).total_seconds() <= needed_s / 0.95 + pause_s


async def test_event_survives_the_death_of_its_dispatcher(env, db, tmp_path):
    """Killed between sending and recording: sent again, and the lost attempt is on record."""
    release = asyncio.Event()

    async def hang_at_first(_):
        if len(receiver.requests) == 1:
            await release.wait()
        return aiohttp.web.Response()

    env = {**env, "WDS_LEASE": "3", "WDS_REQUEST_TIMEOUT": "1", "WDS_RATE_LIMIT": "0"}
    async with receiving() as receiver, AsyncExitStack() as stack:
        receiver.answer = hang_at_first
        env["WDS_DOWNSTREAM_URL"] = receiver.url
        ingest = await stack.enter_async_context(processes.ingest(env, cwd=tmp_path))
        doomed = await stack.enter_async_context(processes.dispatcher(env, cwd=tmp_path))
        [event_id] = await post(ingest.url, bodies(1))
        await eventually(lambda: len(receiver.requests))
        await doomed.stop(signal.SIGKILL)
        release.set()
        await stack.enter_async_context(processes.dispatcher(env, cwd=tmp_path))
        await finished(db, 1)
        event = await processes.get_json(f"{ingest.url}/webhooks/events/{event_id}")
    assert event["status"] == "DELIVERED"
    assert [each["outcome"] for each in event["attempts"]] == ["unknown", "success"]
    assert receiver.ids == [event_id] * 2
    leased, again = (datetime.fromisoformat(each["timestamp"]) for each in event["attempts"])
    assert timedelta(seconds=3) <= again - leased <= timedelta(seconds=3 + 2)


async def test_sigterm_finishes_requests_in_flight_and_exits_cleanly(env, db, tmp_path):
    release = asyncio.Event()

    async def wait(_):
        await release.wait()
        return aiohttp.web.Response()

    env = {**env, "WDS_RATE_LIMIT": "0"}
    async with receiving() as receiver, AsyncExitStack() as stack:
        receiver.answer = wait
        env["WDS_DOWNSTREAM_URL"] = receiver.url
        ingest = await stack.enter_async_context(processes.ingest(env, cwd=tmp_path))
        dispatcher = await stack.enter_async_context(processes.dispatcher(env, cwd=tmp_path))
        await post(ingest.url, bodies(5))
        await eventually(lambda: len(receiver.requests), lambda seen: seen == 5)
        dispatcher.process.send_signal(signal.SIGTERM)
        await post(ingest.url, bodies(3))
        release.set()
        assert await dispatcher.ended(within_s=10 + 5) == 0
        assert await ingest.stop() == 0
    assert await db.events.count_documents({"status": "DELIVERED"}) == 5
    untouched = {"status": "RECEIVED", "attempt_count": 0, "lease": {"$exists": False}}
    assert await db.events.count_documents(untouched) == 3


async def test_sigterm_ends_a_dispatcher_in_time_though_mongodb_is_silent(env, tmp_path):
    server = await embedded_engines.start_mongod(tmp_path / "mongo")
    try:
        await initiate_replica_set("127.0.0.1", server.port, embedded_engines.REPLICA_SET)
        env = {
            **env,
            "WDS_MONGO_URL": f"mongodb://127.0.0.1:{server.port}/?replicaSet=wds",
            "WDS_RATE_LIMIT": "0",
            "WDS_REQUEST_TIMEOUT": "1",
        }
        async with processes.dispatcher(env, cwd=tmp_path) as dispatcher:
            server.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.5)
            assert await dispatcher.stop(within_s=1 + 5 + 1) == 0
    finally:
        server.process.send_signal(signal.SIGCONT)
        await server.stop()


async def test_metrics_of_ingest_have_the_totals_of_all_replicas(env, db, tmp_path):
    async def fail_the_first(_):
        return aiohttp.web.Response(status=500 if len(receiver.requests) == 1 else 200)

    env = {**env, "WDS_RATE_LIMIT": "0", "WDS_BACKOFF": "0.1", "WDS_MAX_ATTEMPTS": "2"}
    async with receiving() as receiver, AsyncExitStack() as stack:
        receiver.answer = fail_the_first
        env["WDS_DOWNSTREAM_URL"] = receiver.url
        ingest = await stack.enter_async_context(processes.ingest(env, cwd=tmp_path))
        dispatchers = [
            await stack.enter_async_context(processes.dispatcher(env, cwd=tmp_path))
            for _ in range(2)
        ]
        await post(ingest.url, bodies(4))
        await finished(db, 4)
        wanted = (
            "wds_fleet_events_received_total 4.0",
            "wds_fleet_deliveries_succeeded_total 4.0",
            "wds_fleet_deliveries_failed_total 0.0",
            "wds_fleet_retry_attempts_total 1.0",
            'wds_fleet_replicas{role="dispatcher"} 2.0',
        )
        await eventually(
            lambda: processes.get_text(f"{ingest.url}/metrics"),
            lambda text: set(wanted) <= set(text.splitlines()),
        )
        for each in dispatchers:
            assert "wds_limiter_up 1.0" in await processes.get_text(f"{each.url}/metrics")


async def test_readyz_follows_redis_and_healthz_does_not(env, tmp_path):
    env = {**env, "WDS_REDIS_URL": f"redis://127.0.0.1:{embedded_engines.free_port()}/0"}
    port = embedded_engines.free_port()
    url = f"http://127.0.0.1:{port}"
    more = {**env, "WDS_METRICS_PORT": str(port)}
    async with processes.running("dispatcher", env=more, cwd=tmp_path, url=url) as made:
        await processes.ready(made, "/healthz")
        async with aiohttp.ClientSession() as session, session.get(f"{url}/readyz") as response:
            assert response.status == 503
            assert (await response.json())["checks"] == {"mongodb": "ok", "redis": "unavailable"}
        await eventually(
            lambda: processes.get_text(f"{url}/metrics"), lambda text: "wds_limiter_up 0.0" in text
        )
        assert await made.stop() == 0
