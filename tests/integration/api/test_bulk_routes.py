"""Replay and cancel of all matching events over HTTP, as bulk actions."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
from structlog.testing import capture_logs

from tests.integration.api.operators import bulk_done, post, refused
from wds.domain.errors import StoreUnavailableError


async def test_bulk_replay_changes_all_matching_events_and_no_others(client, queue):
    wanted = await queue.failed(7, event_type="a")
    others = await queue.failed(2, event_type="b")
    delivered = await queue.delivered(2, event_type="a")
    filters = {"event_type": "a", "status": ["FAILED_PERMANENTLY"]}
    status, begun = await post(
        client, "/webhooks/replay", {**filters, "by": "ann", "per_second": 0}
    )
    assert (status, begun["state"], begun["matched"]) == (202, "running", 7)
    done = await bulk_done(client, begun["request_id"])

    assert done["state"] == "done"
    assert (done["examined"], done["changed"], done["skipped"]) == (7, 7, 0)
    assert (done["filters"], done["by"]) == (filters, "ann")
    for event_id in wanted:
        event = await queue.event(event_id)
        assert event["status"] == "DELIVERING"
        assert [each["request_id"] for each in event["history"]] == [begun["request_id"]]
    for event_id in (*others, *delivered):
        assert "history" not in await queue.event(event_id)
    assert {each.id for each in await queue.claim(20)} == set(wanted)
    await queue.sound()


async def test_dry_run_counts_and_changes_nothing(client, queue, db):
    await queue.failed(3)
    await queue.delivered(2)
    await queue.insert(1)
    before = await db.events.find().to_list(None)
    status, answer = await post(client, "/webhooks/replay", {"from": "2020-01-01", "dry_run": True})

    assert status == 200
    assert answer == {
        "action": "replay",
        "dry_run": True,
        "matched": 5,
        "by_status": {"FAILED_PERMANENTLY": 3, "DELIVERED": 2},
    }
    assert await db.events.find().to_list(None) == before
    assert await db.bulk_actions.count_documents({}) == 0


@pytest.mark.parametrize(
    ("filters", "by_status"),
    [
        ({"from": "2020-01-01"}, {"FAILED_PERMANENTLY": 2, "DELIVERED": 1}),
        ({"status": ["DELIVERED", "RECEIVED"]}, {"DELIVERED": 1}),
        ({"status": "RECEIVED"}, {}),
        ({"to": "2020-01-01"}, {}),
        ({"to": "2100-01-01", "event_type": "a"}, {"FAILED_PERMANENTLY": 2}),
        ({"source": "default", "min_attempts": 2}, {"FAILED_PERMANENTLY": 2}),
        ({"last_status_code": 200}, {"DELIVERED": 1}),
        ({"status": "RECEIVED", "source": "default"}, {}),
    ],
    ids=str,
)
async def test_dry_run_counts_the_events_that_a_replay_examines(client, queue, filters, by_status):
    await queue.failed(2, event_type="a")
    await queue.delivered(1, event_type="b")
    await queue.insert(1, event_type="a")
    _, answer = await post(client, "/webhooks/replay", {**filters, "dry_run": True})
    assert (answer["by_status"], answer["matched"]) == (by_status, sum(by_status.values()))

    _, begun = await post(client, "/webhooks/replay", filters)
    done = await bulk_done(client, begun["request_id"])
    assert done["matched"] == done["changed"] == answer["matched"]


async def test_bulk_replay_starts_even_if_counting_takes_too_long(
    client, queue, store, monkeypatch
):
    async def too_long(_):
        raise StoreUnavailableError

    await queue.failed(2)
    monkeypatch.setattr(store.rollups, "counts", too_long)
    _, begun = await post(client, "/webhooks/replay", {"source": "default"})
    done = await bulk_done(client, begun["request_id"])

    assert (done["matched"], done["changed"]) == (None, 2)


async def test_bulk_replay_stops_at_its_limit_oldest_events_first(client, queue, db, monkeypatch):
    monkeypatch.setattr("wds.storage.bulk_actions.CHUNK", 3)
    ids = await queue.failed(10)
    for age, event_id in enumerate(ids):
        older = [{"$set": {"received_at": {"$subtract": ["$received_at", 1000 * age]}}}]
        await db.events.update_one({"_id": event_id}, older)
    _, begun = await post(client, "/webhooks/replay", {"from": "2020-01-01", "limit": 7})
    done = await bulk_done(client, begun["request_id"])

    assert (done["matched"], done["changed"]) == (10, 7)
    replayed = {each["_id"] async for each in db.events.find({"history": {"$exists": True}})}
    assert replayed == set(ids[3:])


async def test_bulk_replay_skips_and_counts_leased_events(client, queue):
    await queue.failed(2)
    await queue.insert(1)
    [claim] = await queue.claim()
    before = await queue.event(claim.id)
    _, begun = await post(client, "/webhooks/replay", {"from": "2020-01-01"})
    done = await bulk_done(client, begun["request_id"])

    assert (done["changed"], done["skipped"]) == (2, 1)
    assert await queue.event(claim.id) == before


async def test_bulk_cancel_leaves_out_events_received_after_the_request(
    client, queue, store, monkeypatch
):
    held = asyncio.Event()
    take = store.bulk_actions.take

    async def take_later(owner):
        await held.wait()
        return await take(owner)

    monkeypatch.setattr(store.bulk_actions, "take", take_later)
    await queue.insert(2)
    _, begun = await post(client, "/webhooks/cancel", {"from": "2020-01-01"})
    await asyncio.sleep(0.002)  # the clock of arrivals is in milliseconds
    [late] = await queue.insert(1)
    held.set()
    done = await bulk_done(client, begun["request_id"])

    assert (done["matched"], done["changed"]) == (2, 2)
    assert (await queue.event(late))["status"] == "RECEIVED"


async def test_bulk_replay_spreads_events_at_per_second(client, queue, db):
    await queue.failed(30)
    began = datetime.now(UTC)
    _, begun = await post(client, "/webhooks/replay", {"from": "2020-01-01", "per_second": 10})
    await bulk_done(client, begun["request_id"])
    dues = sorted([each["next_attempt_at"] async for each in db.events.find()])

    assert begun["per_second"] == 10
    assert dues[0] >= began - timedelta(seconds=1)
    assert dues[-1] <= datetime.now(UTC) + timedelta(seconds=3.1)
    assert dues[-1] - dues[0] > timedelta(seconds=1)


async def test_bulk_replay_defaults_to_half_of_the_rate_limit(client, queue):
    await queue.failed(1)
    _, begun = await post(client, "/webhooks/replay", {"from": "2020-01-01"})

    assert begun["per_second"] == 1.5


async def test_bulk_replay_repeated_under_its_request_id_is_the_same_one(client, queue, db):
    ids = await queue.failed(3)
    body = {"event_type": "a", "from": "2020-01-01", "request_id": "r", "per_second": 0}
    del body["event_type"]
    first, _ = await post(client, "/webhooks/replay", body)
    await bulk_done(client, "r")
    assert await queue.attempt(succeed=False, limit=5) == 3
    second, answer = await post(client, "/webhooks/replay", body)

    assert (first, second, answer["state"], answer["changed"]) == (202, 200, "done", 3)
    for event_id in ids:
        assert len((await queue.event(event_id))["history"]) == 1
    assert await db.bulk_actions.count_documents({}) == 1


async def test_bulk_request_id_of_another_request_is_a_conflict(client, queue):
    await queue.failed(1)
    await post(client, "/webhooks/replay", {"from": "2020-01-01", "request_id": "r"})
    for path, body in [
        ("/webhooks/cancel", {"from": "2020-01-01"}),
        ("/webhooks/replay", {"from": "2021-01-01"}),
        ("/webhooks/replay", {"from": "2020-01-01", "limit": 1}),
        ("/webhooks/replay", {"from": "2020-01-01", "per_second": 1}),
    ]:
        assert await refused(client, path, {**body, "request_id": "r"}) == (
            409,
            "idempotency_conflict",
        )


async def test_bulk_replay_counts_only_its_own_action_under_a_shared_id(client, queue):
    [waiting] = await queue.insert()
    await queue.attempt(succeed=False)
    [leased] = await queue.insert()
    await queue.claim()
    for event_id in (waiting, leased):
        await post(client, f"/webhooks/events/{event_id}/cancel", {"request_id": "r"})
    await post(client, "/webhooks/replay", {"from": "2020-01-01", "request_id": "r"})
    done = await bulk_done(client, "r")

    assert (done["examined"], done["changed"], done["skipped"]) == (2, 1, 1)
    history = (await queue.event(waiting))["history"]
    assert [each["action"] for each in history] == ["cancel", "replay"]


@pytest.mark.parametrize("path", ["/webhooks/replay", "/webhooks/cancel"])
@pytest.mark.parametrize("body", [{}, {"limit": 5}, {"dry_run": True}])
async def test_bulk_action_without_a_filter_is_refused(client, path, body):
    assert await refused(client, path, body) == (422, "invalid_request")


async def test_bulk_cancel_cancels_all_live_matches_and_keeps_final_ones(client, queue):
    delivered = await queue.delivered(1)
    leased = await queue.insert(1)
    await queue.claim()
    waiting = await queue.insert(3)
    _, begun = await post(client, "/webhooks/cancel", {"from": "2020-01-01", "by": "ann"})
    done = await bulk_done(client, begun["request_id"])

    assert (done["matched"], done["changed"]) == (4, 4)
    assert (await queue.event(delivered[0]))["status"] == "DELIVERED"
    assert (await queue.event(leased[0]))["cancelling"] is True
    for event_id in waiting:
        assert (await queue.event(event_id))["status"] == "FAILED_PERMANENTLY"
    await queue.sound()


async def test_bulk_stop_ends_the_action_before_its_last_event(client, queue, db, monkeypatch):
    monkeypatch.setattr("wds.storage.bulk_actions.CHUNK", 1)
    await queue.failed(60)
    _, begun = await post(client, "/webhooks/replay", {"from": "2020-01-01"})
    status, _ = await post(client, f"/webhooks/bulk/{begun['request_id']}/stop")
    done = await bulk_done(client, begun["request_id"])

    assert (status, done["state"], done["stop_requested"]) == (200, "stopped", True)
    assert done["changed"] < 60
    assert await db.events.count_documents({"history": {"$exists": True}}) == done["changed"]


async def test_bulk_list_is_latest_first(client, queue):
    await queue.failed(1)
    for number in range(3):
        request = {"from": "2020-01-01", "request_id": f"r{number}"}
        await post(client, "/webhooks/replay", request)
        await asyncio.sleep(0.002)
    _, answer = await client.get("/webhooks/bulk")

    assert [each["request_id"] for each in answer["bulk_actions"]] == ["r2", "r1", "r0"]


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", "/stop")])
async def test_bulk_routes_answer_404_for_an_unknown_request_id(client, method, path):
    url = f"{client.url}/webhooks/bulk/nothing{path}"
    async with client.session.request(method, url) as response:
        assert response.status == 404


async def test_bulk_action_is_logged_when_it_begins_and_when_it_is_stopped(
    client, queue, store, monkeypatch
):
    monkeypatch.setattr(store.bulk_actions, "take", never)
    await queue.failed(2)
    body = {"from": "2020-01-01", "request_id": "r", "by": "ann", "reason": "hush"}
    with capture_logs() as lines:
        for path in ("/webhooks/replay", "/webhooks/bulk/r/stop"):
            for _ in range(2):
                assert (await post(client, path, body))[0] in {200, 202}
    said = [line for line in lines if line["event"].startswith("bulk_action_")]

    facts = {"request_id": "r", "action": "replay", "remote": "127.0.0.1", "log_level": "info"}
    assert said == [
        {"event": "bulk_action_begun", "by": "ann", "matched": 2, **facts},
        {"event": "bulk_action_stopped", **facts},
    ]
    assert "hush" not in str(lines)


async def never(_):
    """Find no bulk action to work on."""


ODD_IDS = ["a{b}c", "{", "}", "{request_id}", "a/b", "../x", "a%2Fb", "%", "a b", "...", "č;?#+&"]


# -- odd requests ------------------------------------------------------------------------------


@pytest.mark.parametrize("request_id", ODD_IDS)
async def test_bulk_routes_find_every_valid_request_id(client, queue, request_id):
    await queue.failed(1)
    body = {"from": "2020-01-01", "request_id": request_id}
    assert (await post(client, "/webhooks/replay", body))[0] == 202
    done = await bulk_done(client, quote(request_id, safe=""))
    path = f"/webhooks/bulk/{quote(request_id, safe='')}/stop"
    status, stopped = await post(client, path)

    assert (done["request_id"], done["state"]) == (request_id, "done")
    assert (status, stopped) == (200, done)


@pytest.mark.parametrize("pace", [1e-13, 0.0009, -1])
async def test_per_second_too_low_for_any_date_is_refused(client, queue, pace):
    """A search could not read them, nor other events on the same page."""
    await queue.failed()
    body = {"status": "FAILED_PERMANENTLY", "per_second": pace}
    assert await refused(client, "/webhooks/replay", body) == (422, "invalid_request")
    assert await queue.db.bulk_actions.count_documents({}) == 0


async def test_per_second_at_its_minimum_keeps_events_readable(client, queue):
    ids = await queue.failed(3)
    body = {"status": "FAILED_PERMANENTLY", "per_second": 0.001}
    _, begun = await post(client, "/webhooks/replay", body)
    assert (await bulk_done(client, begun["request_id"]))["changed"] == 3
    status, found = await post(client, "/webhooks/search", {"limit": 3})
    assert (status, {each["id"] for each in found["events"]}) == (200, set(ids))
