"""A bulk replay during a steady stream of new events, while the ingests that run it are killed."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import time
from datetime import UTC, timedelta

import aiohttp

from tests.faults.harness import system
from tests.faults.receiver import receiving_apart
from tests.grants import recording_grants
from tests.support import eventually, most_in_any_second, new_event, signed
from wds.config import Settings
from wds.domain.invariants import Expectations, violations
from wds.storage.event_documents import event_document

LIMIT = 3
WINDOW_S = 5
"""Seconds over which arrivals are counted here: on one busy machine, requests may be delayed by
some tenths of a second. The slots that Redis grants are counted by the second, and so are the
arrivals in `test_limit`."""
PER_SECOND = 50
FILTERS = {"status": "FAILED_PERMANENTLY", "event_type": "old"}


async def seed_failed(running, count):
    """Store `count` events of 2 KiB that became FAILED_PERMANENTLY an hour ago."""
    hello = await running.db.command("hello")
    long_ago = hello["localTime"].replace(tzinfo=UTC) - timedelta(hours=1)
    failure = {
        "attempt_number": 1,
        "timestamp": long_ago,
        "status_code": 500,
        "success": False,
        "outcome": "failure",
        "duration_ms": 3,
        "error": "HTTP 500",
        "response": "",
    }
    payload = json.dumps({"text": "x" * 2000}).encode()
    for start in range(0, count, 1000):
        documents = []
        for _ in range(min(1000, count - start)):
            document = event_document(new_event(payload, event_type="old"), long_ago)
            del document["next_attempt_at"]
            document |= {"status": "FAILED_PERMANENTLY", "finished_at": long_ago}
            document |= {"attempt_count": 1, "attempts": [failure], "last_status_code": 500}
            documents.append(document)
        await running.db.events.insert_many(documents)


class Stream:
    """Sends new events at a steady rate, however long answers take; records the seconds of each."""

    def __init__(self, running):
        self.urls = [f"{each.url}/webhooks/ingest" for each in running.ingests]
        self.seconds: list[tuple[float, float]] = []
        self.failed = 0

    async def run(self):
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            number, began = 0, time.monotonic()
            while True:
                group.create_task(self.post(session, number))
                number += 1
                await asyncio.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))

    async def post(self, session, number):
        body = json.dumps({"type": "new", "text": "y" * 2000}).encode()
        began = time.monotonic()
        try:
            url = self.urls[number % len(self.urls)]
            async with session.post(url, data=body, headers=signed(body)) as response:
                await response.read()
                assert response.status == 202
        except aiohttp.ClientError:  # that ingest was killed
            self.failed += 1
            return
        self.seconds.append((began, time.monotonic() - began))

    def p99_ms(self, since, until):
        times = sorted(took for began, took in self.seconds if since <= began < until)
        return times[len(times) * 99 // 100] * 1000


async def ask(running, method, path, body=None):
    """Send a request to the first ingest that answers."""
    async with aiohttp.ClientSession() as session:
        for replica in running.ingests * 50:
            try:
                async with session.request(method, replica.url + path, json=body) as response:
                    assert response.status < 300, await response.text()
                    return await response.json()
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
    raise AssertionError


async def kill_the_worker(running, request_id):
    """Kill the ingest that runs a bulk action, start it again, and wait until another takes over.

    False if the bulk action has ended.
    """
    found = await running.db.bulk_actions.find_one({"_id": request_id})
    if found["state"] != "running" or "lease" not in found:
        return False
    pid = found["lease"]["owner"].split("-")[-2]
    [victim] = [each for each in running.ingests if str(each.process.process.pid) == pid]
    victim.signal(signal.SIGKILL)
    await victim.start()
    await victim.ready()
    token = found["lease"]["token"]

    async def taken_over():
        now = await running.db.bulk_actions.find_one({"_id": request_id})
        return now.get("lease", {}).get("token") != token

    await eventually(taken_over, within_s=40)
    return True


async def bulk(running, path, kills=0, **body):
    """Start a bulk action and wait for its end; kill the ingest that runs it `kills` times.

    Returns the bulk action and the number of kills.
    """
    request_id = secrets.token_hex(8)
    await ask(running, "POST", path, {**body, "request_id": request_id})
    done = 0
    while done < kills:
        await asyncio.sleep(0.3)
        if not await kill_the_worker(running, request_id):
            break
        done += 1

    async def look():
        return await ask(running, "GET", f"/webhooks/bulk/{request_id}")

    ended = await eventually(look, lambda seen: seen["state"] != "running", within_s=240)
    return ended, done


async def assert_sound(running, replayed):
    hello = await running.db.command("hello")
    expected = Expectations(hello["localTime"].replace(tzinfo=UTC), 8, [0.2, 0.4, 0.8], 3600)
    count = 0
    async for event in running.db.events.find({}, {"payload": 0}):
        assert list(violations(event, expected)) == [], event
        entries = [each["action"] for each in event.get("history", [])]
        assert entries.count("replay") == (event["event_type"] == "old")
        count += event["event_type"] == "old"
    assert count == replayed


async def replay_beside_a_stream(tmp_path, seed, count, *, kills):
    settings = {"WDS_RATE_LIMIT": str(LIMIT), "WDS_LEASE": "5"}
    async with (
        receiving_apart() as receiver,
        system(tmp_path, seed=seed, settings=settings, dispatchers=2, receiver=receiver) as running,
        recording_grants(running.env["WDS_REDIS_URL"], Settings().mongo_db) as grants,
    ):
        await seed_failed(running, count)
        stream = Stream(running)
        sending = asyncio.create_task(stream.run())
        began = time.monotonic()
        # The stream alone, for comparison; a run with kills compares nothing.
        await asyncio.sleep(1 if kills else 8)
        replaying = time.monotonic()
        replay, killed = await bulk(running, "/webhooks/replay", kills, **FILTERS, per_second=0)
        over = time.monotonic()
        await asyncio.sleep(3)
        sending.cancel()
        await asyncio.wait({sending})
        # Cancel the rest: delivering it at this rate limit would take too long.
        cancelled, _ = await bulk(running, "/webhooks/cancel", **{"from": "2020-01-01"})
        await eventually(
            lambda: running.db.events.count_documents({"next_attempt_at": {"$exists": True}}),
            lambda live: live == 0,
            within_s=30,
        )
        granted = await grants.instants()
        await receiver.fetch()
        instants = [request.at for request in receiver.requests]
        most = most_in_any_second(instants, window_s=WINDOW_S)
        before, during = stream.p99_ms(began, replaying), stream.p99_ms(replaying, over)
        running.report(
            f"{replay['changed']} replayed in {over - replaying:.1f} s with {killed} kills; ingest"
            f" p99 {before:.0f} ms before, {during:.0f} ms during it;"
            f" most in {WINDOW_S} s {most}, in one {most_in_any_second(instants)};"
            f" {len(granted)} slots for {len(instants)} requests"
        )
        await assert_sound(running, count)
    assert (replay["state"], replay["changed"], replay["skipped"]) == ("done", count, 0)
    assert cancelled["state"] == "done"
    assert len(receiver.requests) > LIMIT
    assert most <= WINDOW_S * LIMIT + LIMIT
    assert most_in_any_second(granted) == LIMIT
    assert len(granted) >= len(receiver.requests)
    return stream, before, during, killed


async def test_bulk_replay_neither_blocks_ingest_nor_exceeds_the_rate_limit(tmp_path, seed, scale):
    count = scale.replayed
    stream, before, during, _ = await replay_beside_a_stream(tmp_path, seed, count, kills=0)
    assert stream.failed == 0
    assert during <= max(10 * before, 500)


async def test_bulk_replay_continues_after_its_ingest_is_killed(tmp_path, seed, scale):
    count, kills = scale.replayed, scale.replay_kills
    *_, killed = await replay_beside_a_stream(tmp_path, seed, count, kills=kills)
    assert killed == kills, "no fault was felt"
