"""Replay and cancel over HTTP: one event, many as a bulk action, and who did it and when."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
from structlog.testing import capture_logs

from tests.support import clock_caught_up, eventually, new_event
from wds.domain.deliveries import Attempt, Outcome, Settlement, Status
from wds.domain.errors import StoreUnavailableError
from wds.domain.invariants import Expectations, violations

MOST = 2
SCHEDULE = (30.0,)


@pytest.fixture
def queue(store, db):
    """Drive the lease queue as a dispatcher would, with two attempts an event."""
    return Queue(store, db)


class Queue:
    def __init__(self, store, db):
        self.store, self.db = store, db

    async def insert(self, count=1, **fields):
        events = [new_event(**fields) for _ in range(count)]
        await self.store.writer.insert(events)
        return [event.id for event in events]

    async def claim(self, limit=1):
        await clock_caught_up(self.store)
        claimed = await self.store.queue.claim(
            "default", limit, owner="d", lease_s=60, max_attempts=MOST
        )
        return claimed.claims

    async def attempt(self, *, succeed, limit=1):
        """Claim what is due and settle it like a dispatcher."""
        claims = await self.claim(limit)
        assert all(
            await self.store.queue.settle([settlement(each, succeed=succeed) for each in claims])
        )
        return len(claims)

    async def due_now(self):
        await self.db.events.update_many(
            {"next_attempt_at": {"$exists": True}, "lease": {"$exists": False}},
            [{"$set": {"next_attempt_at": "$$NOW"}}],
        )

    async def failed(self, count=1, **fields):
        """Make events that have failed for good."""
        ids = await self.insert(count, **fields)
        for _ in range(MOST):
            await self.due_now()
            assert await self.attempt(succeed=False, limit=max(count, 2)) == count
        return ids

    async def delivered(self, count=1, **fields):
        ids = await self.insert(count, **fields)
        assert await self.attempt(succeed=True, limit=max(count, 2)) == count
        return ids

    async def event(self, event_id):
        return await self.db.events.find_one({"_id": event_id})

    async def sound(self):
        """Assert that every event keeps every invariant."""
        now = (await self.db.command("hello"))["localTime"].replace(tzinfo=UTC)
        expected = Expectations(now, MOST, (0.0,), 3600)
        async for event in self.db.events.find():
            assert list(violations(event, expected)) == [], event


def settlement(claim, *, succeed):
    outcome = Outcome.SUCCESS if succeed else Outcome.FAILURE
    error = None if succeed else "HTTP 500"
    attempt = Attempt(
        claim.attempt_number, claim.leased_at, outcome, 200 if succeed else 500, 3, error, None
    )
    if succeed:
        return Settlement(claim, attempt, Status.DELIVERED)
    if claim.schedule_step >= MOST:
        return Settlement(claim, attempt, Status.FAILED_PERMANENTLY)
    return Settlement(claim, attempt, Status.DELIVERING, 30.0)


async def post(client, path, body=None, **headers):
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    status, answer = await client.post(
        path, json.dumps(body or {}).encode(), {"Content-Type": "application/json", **sent}
    )
    return status, answer


async def refused(client, path, body=None):
    status, answer = await post(client, path, body)
    return status, answer["error"]["code"]


async def bulk_done(client, request_id):
    async def look():
        _, answer = await client.get(f"/webhooks/bulk/{request_id}")
        return answer

    return await eventually(look, lambda seen: seen["state"] != "running")


# -- replaying one event ------------------------------------------------------------------------


async def test_a_replayed_event_gets_the_whole_schedule_again_and_keeps_its_attempts(client, queue):
    [event_id] = await queue.failed()
    status, answer = await post(
        client, f"/webhooks/events/{event_id}/replay", {"by": "ann", "reason": "they fixed it"}
    )
    assert status == 202
    assert (answer["id"], answer["status"], answer["repeated"]) == (event_id, "DELIVERING", False)
    await queue.sound()
    for _ in range(MOST):
        await queue.due_now()
        assert await queue.attempt(succeed=False) == 1
    await queue.sound()

    _, event = await client.get(f"/webhooks/events/{event_id}")
    assert event["status"] == "FAILED_PERMANENTLY"
    assert [each["attempt_number"] for each in event["attempts"]] == [1, 2, 3, 4]
    assert event["attempts_before"] == 2
    [entry] = event["history"]
    at = datetime.fromisoformat(entry.pop("at"))
    assert abs(at - datetime.now(UTC)) < timedelta(minutes=1)
    assert entry == {
        "action": "replay",
        "by": "ann",
        "remote": "127.0.0.1",
        "reason": "they fixed it",
        "request_id": answer["request_id"],
        "status": "FAILED_PERMANENTLY",
        "attempt_count": 2,
    }


async def test_a_replayed_event_is_due_at_once(client, queue):
    [event_id] = await queue.delivered()
    assert await queue.claim() == []
    await post(client, f"/webhooks/events/{event_id}/replay")
    [claim] = await queue.claim()
    assert (claim.id, claim.attempt_number, claim.schedule_step) == (event_id, 2, 1)
    await queue.sound()


@pytest.mark.parametrize("how", ["header", "body"])
async def test_a_replay_repeated_under_its_request_id_does_nothing_twice(client, queue, how):
    [event_id] = await queue.failed()
    body = {"request_id": "r1"} if how == "body" else {}
    headers = {"Idempotency_Key": "r1"} if how == "header" else {}
    path = f"/webhooks/events/{event_id}/replay"
    first, _ = await post(client, path, body, **headers)
    await queue.attempt(succeed=True)
    before = await queue.event(event_id)
    second, answer = await post(client, path, body, **headers)

    assert (first, second) == (202, 200)
    assert (answer["repeated"], answer["status"]) == (True, "DELIVERED")
    assert await queue.event(event_id) == before


@pytest.mark.parametrize(("first", "second"), [("cancel", "replay"), ("replay", "cancel")])
async def test_a_request_id_that_did_the_other_action_to_an_event_is_a_conflict(
    client, queue, first, second
):
    [event_id] = await queue.insert()
    await queue.attempt(succeed=False)
    path = f"/webhooks/events/{event_id}"
    assert (await post(client, f"{path}/{first}", {"request_id": "r"}))[0] == 202
    before = await queue.event(event_id)

    conflict = (409, "idempotency_conflict")
    assert await refused(client, f"{path}/{second}", {"request_id": "r"}) == conflict
    assert await queue.event(event_id) == before
    assert (await post(client, f"{path}/{first}", {"request_id": "r"}))[0] == 200
    assert (await post(client, f"{path}/{second}", {"request_id": "s"}))[0] == 202


async def test_many_replays_at_once_under_one_request_id_are_one(client, queue):
    [event_id] = await queue.failed()
    path = f"/webhooks/events/{event_id}/replay"
    answers = await asyncio.gather(*(post(client, path, {"request_id": "r"}) for _ in range(10)))

    assert sorted(status for status, _ in answers) == [200] * 9 + [202]
    assert len((await queue.event(event_id))["history"]) == 1


async def test_a_live_lease_is_never_disturbed_by_a_replay(client, queue):
    [event_id] = await queue.insert()
    await queue.claim()
    before = await queue.event(event_id)

    assert await refused(client, f"/webhooks/events/{event_id}/replay") == (409, "in_delivery")
    assert await queue.event(event_id) == before


async def test_an_event_that_waits_after_a_failure_is_tried_now(client, queue):
    [event_id] = await queue.insert()
    await queue.attempt(succeed=False)
    assert await queue.claim() == []
    assert (await post(client, f"/webhooks/events/{event_id}/replay"))[0] == 202
    [claim] = await queue.claim()
    assert (claim.id, claim.schedule_step) == (event_id, 1)
    await queue.sound()


async def test_an_event_with_the_whole_schedule_ahead_is_not_replayed(client, queue):
    [event_id] = await queue.insert()
    path = f"/webhooks/events/{event_id}/replay"
    assert await refused(client, path) == (409, "already_waiting")
    await queue.attempt(succeed=True)
    assert (await post(client, path))[0] == 202
    assert await refused(client, path) == (409, "already_waiting")
    assert len((await queue.event(event_id))["history"]) == 1


async def test_an_event_without_room_for_further_attempts_is_not_replayed(client, queue, db):
    [event_id] = await queue.failed()
    await db.events.update_one(
        {"_id": event_id}, {"$set": {"payload": bytes(16 * 1024**2 - 400_000)}}
    )

    assert await refused(client, f"/webhooks/events/{event_id}/replay") == (409, "no_room")


@pytest.mark.parametrize("action", ["replay", "cancel"])
async def test_an_unknown_event_is_not_found(client, action):
    assert await refused(client, f"/webhooks/events/nothing/{action}") == (404, "not_found")


@pytest.mark.parametrize(
    ("path", "base"),
    [("/webhooks/events/x/replay", {}), ("/webhooks/replay", {"event_type": "a"})],
)
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"by": ""}, "by"),
        ({"by": 1}, "by"),
        ({"request_id": "a\nb"}, "request_id"),
        ({"request_id": "."}, "request_id"),
        ({"request_id": ".."}, "request_id"),
        ({"reason": "x" * 1001}, "reason"),
        ({"foo": 1}, "foo"),
    ],
)
async def test_a_wrong_instruction_is_refused_by_field(client, path, base, body, field):
    status, answer = await post(client, path, {**base, **body})

    assert status == 422
    assert [each["field"] for each in answer["error"]["details"]] == [field]


# -- cancelling one event -----------------------------------------------------------------------


async def test_a_cancelled_event_is_final_and_never_tried_again(client, queue):
    [event_id] = await queue.insert()
    await queue.attempt(succeed=False)
    status, answer = await post(
        client, f"/webhooks/events/{event_id}/cancel", {"by": "bob", "reason": "wrong address"}
    )
    assert (status, answer["status"], answer["cancelling"]) == (202, "FAILED_PERMANENTLY", False)
    await queue.due_now()
    assert await queue.claim() == []
    await queue.sound()
    [entry] = (await queue.event(event_id))["history"]
    assert (entry["action"], entry["by"], entry["reason"]) == ("cancel", "bob", "wrong address")
    assert entry["status"] == "DELIVERING"


@pytest.mark.parametrize(
    ("end", "status", "attempts"),
    [
        ("success", "DELIVERED", 1),
        ("failure", "FAILED_PERMANENTLY", 1),
        ("defer", "FAILED_PERMANENTLY", 0),
        ("death", "FAILED_PERMANENTLY", 1),
    ],
)
async def test_an_attempt_under_way_is_not_cut_short_and_nothing_follows_it(
    client, queue, end, status, attempts
):
    [event_id] = await queue.insert()
    [claim] = await queue.claim()
    answered, answer = await post(client, f"/webhooks/events/{event_id}/cancel")
    assert (answered, answer["status"], answer["cancelling"]) == (202, "DELIVERING", True)
    assert (await queue.event(event_id))["lease"]["token"] == claim.token
    await queue.sound()

    if end == "death":
        await queue.db.events.update_one(
            {"_id": event_id}, [{"$set": {"next_attempt_at": {"$subtract": ["$$NOW", 1]}}}]
        )
        assert await queue.claim() == []
    else:
        done = (
            Settlement(claim, None)
            if end == "defer"
            else settlement(claim, succeed=end == "success")
        )
        assert await queue.store.queue.settle([done]) != [None]

    event = await queue.event(event_id)
    assert (event["status"], len(event["attempts"])) == (status, attempts)
    assert await queue.claim() == []
    await queue.sound()


async def test_a_replay_of_a_delivered_event_is_undone_by_a_cancel(client, queue):
    [event_id] = await queue.delivered()
    await post(client, f"/webhooks/events/{event_id}/replay")
    _, answer = await post(client, f"/webhooks/events/{event_id}/cancel")

    assert answer["status"] == "DELIVERED"
    assert await queue.claim() == []
    await queue.sound()


async def test_a_cancelled_event_that_was_never_tried_can_be_replayed(client, queue):
    [event_id] = await queue.insert()
    await post(client, f"/webhooks/events/{event_id}/cancel")
    _, answer = await post(client, f"/webhooks/events/{event_id}/replay")

    assert answer["status"] == "RECEIVED"
    [claim] = await queue.claim()
    assert claim.attempt_number == 1
    await queue.sound()


async def test_what_is_final_or_being_cancelled_is_not_cancelled(client, queue):
    [final] = await queue.delivered()
    [leased] = await queue.insert()
    await queue.claim()
    path = f"/webhooks/events/{leased}/cancel"
    assert await refused(client, f"/webhooks/events/{final}/cancel") == (409, "already_final")
    assert (await post(client, path, {"request_id": "r"}))[0] == 202
    assert await refused(client, path) == (409, "already_cancelled")
    assert (await post(client, path, {"request_id": "r"}))[0] == 200
    assert await refused(client, f"/webhooks/events/{leased}/replay") == (409, "already_cancelled")


# -- bulk actions -------------------------------------------------------------------------------


async def test_all_that_match_are_replayed_and_nothing_else(client, queue):
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


async def test_a_dry_run_counts_and_changes_nothing(client, queue, db):
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
async def test_a_dry_run_counts_what_a_replay_would_be_about(client, queue, filters, by_status):
    await queue.failed(2, event_type="a")
    await queue.delivered(1, event_type="b")
    await queue.insert(1, event_type="a")
    _, answer = await post(client, "/webhooks/replay", {**filters, "dry_run": True})
    assert (answer["by_status"], answer["matched"]) == (by_status, sum(by_status.values()))

    _, begun = await post(client, "/webhooks/replay", filters)
    done = await bulk_done(client, begun["request_id"])
    assert done["matched"] == done["changed"] == answer["matched"]


async def test_what_takes_too_long_to_count_is_replayed_all_the_same(
    client, queue, store, monkeypatch
):
    async def too_long(_):
        raise StoreUnavailableError

    await queue.failed(2)
    monkeypatch.setattr(store.rollups, "counts", too_long)
    _, begun = await post(client, "/webhooks/replay", {"source": "default"})
    done = await bulk_done(client, begun["request_id"])

    assert (done["matched"], done["changed"]) == (None, 2)


async def test_no_more_than_the_limit_are_replayed_the_oldest_first(client, queue, db, monkeypatch):
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


async def test_events_being_delivered_are_skipped_and_counted(client, queue):
    await queue.failed(2)
    await queue.insert(1)
    [claim] = await queue.claim()
    before = await queue.event(claim.id)
    _, begun = await post(client, "/webhooks/replay", {"from": "2020-01-01"})
    done = await bulk_done(client, begun["request_id"])

    assert (done["changed"], done["skipped"]) == (2, 1)
    assert await queue.event(claim.id) == before


async def test_what_arrives_after_the_request_is_not_meant(client, queue, store, monkeypatch):
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


async def test_a_bulk_replay_leaves_new_events_their_turn(client, queue, db):
    await queue.failed(30)
    began = datetime.now(UTC)
    _, begun = await post(client, "/webhooks/replay", {"from": "2020-01-01", "per_second": 10})
    await bulk_done(client, begun["request_id"])
    dues = sorted([each["next_attempt_at"] async for each in db.events.find()])

    assert begun["per_second"] == 10
    assert dues[0] >= began - timedelta(seconds=1)
    assert dues[-1] <= datetime.now(UTC) + timedelta(seconds=3.1)
    assert dues[-1] - dues[0] > timedelta(seconds=1)


async def test_half_of_the_limit_is_left_to_new_events_unless_told_otherwise(client, queue):
    await queue.failed(1)
    _, begun = await post(client, "/webhooks/replay", {"from": "2020-01-01"})

    assert begun["per_second"] == 1.5


async def test_a_bulk_action_repeated_under_its_request_id_is_the_same_one(client, queue, db):
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


async def test_a_request_id_belongs_to_one_bulk_action(client, queue):
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


async def test_a_bulk_action_does_and_counts_its_own_action_under_an_id_that_did_the_other(
    client, queue
):
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
async def test_a_bulk_action_needs_a_filter(client, path, body):
    assert await refused(client, path, body) == (422, "invalid_request")


async def test_all_that_match_are_cancelled_and_what_is_final_stays(client, queue):
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


async def test_a_bulk_action_can_be_stopped(client, queue, db, monkeypatch):
    monkeypatch.setattr("wds.storage.bulk_actions.CHUNK", 1)
    await queue.failed(60)
    _, begun = await post(client, "/webhooks/replay", {"from": "2020-01-01"})
    status, _ = await post(client, f"/webhooks/bulk/{begun['request_id']}/stop")
    done = await bulk_done(client, begun["request_id"])

    assert (status, done["state"], done["stop_requested"]) == (200, "stopped", True)
    assert done["changed"] < 60
    assert await db.events.count_documents({"history": {"$exists": True}}) == done["changed"]


async def test_bulk_actions_are_listed_the_latest_first(client, queue):
    await queue.failed(1)
    for number in range(3):
        request = {"from": "2020-01-01", "request_id": f"r{number}"}
        await post(client, "/webhooks/replay", request)
        await asyncio.sleep(0.002)
    _, answer = await client.get("/webhooks/bulk")

    assert [each["request_id"] for each in answer["bulk_actions"]] == ["r2", "r1", "r0"]


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", "/stop")])
async def test_an_unknown_bulk_action_is_not_found(client, method, path):
    url = f"{client.url}/webhooks/bulk/nothing{path}"
    async with client.session.request(method, url) as response:
        assert response.status == 404


# -- the log ------------------------------------------------------------------------------------


async def test_what_an_operator_does_to_an_event_is_a_line_with_who_and_from_where(client, queue):
    [event_id] = await queue.failed()
    path = f"/webhooks/events/{event_id}"
    with capture_logs() as lines:
        for action in ("replay", "replay", "cancel"):
            body = {"request_id": action, "by": "ann", "reason": "hush"}
            await post(client, f"{path}/{action}", body)
        assert await refused(client, f"{path}/cancel") == (409, "already_final")
    said = [line for line in lines if line["event"] in {"replayed", "cancelled"}]

    who = {"event_id": event_id, "by": "ann", "remote": "127.0.0.1", "log_level": "info"}
    assert said == [
        {"event": "replayed", "request_id": "replay", **who},
        {"event": "cancelled", "request_id": "cancel", **who},
    ]
    assert "hush" not in str(lines)


async def test_what_an_operator_does_to_many_is_a_line_when_it_begins_and_when_it_is_stopped(
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


# -- odd requests -------------------------------------------------------------------------------


ODD_IDS = ["a{b}c", "{", "}", "{request_id}", "a/b", "../x", "a%2Fb", "%", "a b", "...", "č;?#+&"]


@pytest.mark.parametrize("request_id", ODD_IDS)
async def test_a_bulk_action_is_found_and_stopped_under_whatever_id_was_taken(
    client, queue, request_id
):
    await queue.failed(1)
    body = {"from": "2020-01-01", "request_id": request_id}
    assert (await post(client, "/webhooks/replay", body))[0] == 202
    done = await bulk_done(client, quote(request_id, safe=""))
    path = f"/webhooks/bulk/{quote(request_id, safe='')}/stop"
    status, stopped = await post(client, path)

    assert (done["request_id"], done["state"]) == (request_id, "done")
    assert (status, stopped) == (200, done)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/webhooks/events/x/replay", {}), ("/webhooks/cancel", {"status": "RECEIVED"})],
)
@pytest.mark.parametrize("request_id", [".", "..", "x" * 256])
async def test_an_id_that_no_address_can_have_is_refused_in_the_header_too(
    client, path, body, request_id
):
    status, answer = await post(client, path, body, Idempotency_Key=request_id)
    assert status == 422
    assert [each["field"] for each in answer["error"]["details"]] == ["Idempotency-Key"]


@pytest.mark.parametrize("pace", [1e-13, 0.0009, -1])
async def test_a_pace_that_would_make_events_due_beyond_all_dates_is_refused(client, queue, pace):
    """A search could not read them any more, nor anything beside them."""
    await queue.failed()
    body = {"status": "FAILED_PERMANENTLY", "per_second": pace}
    assert await refused(client, "/webhooks/replay", body) == (422, "invalid_request")
    assert await queue.db.bulk_actions.count_documents({}) == 0


async def test_at_the_slowest_pace_events_can_still_be_read(client, queue):
    ids = await queue.failed(3)
    body = {"status": "FAILED_PERMANENTLY", "per_second": 0.001}
    _, begun = await post(client, "/webhooks/replay", body)
    assert (await bulk_done(client, begun["request_id"]))["changed"] == 3
    status, found = await post(client, "/webhooks/search", {"limit": 3})
    assert (status, {each["id"] for each in found["events"]}) == (200, set(ids))
