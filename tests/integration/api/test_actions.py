"""Replay and cancel of one event over HTTP, and its history."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from tests.integration.api.operators import MOST, post, refused, settlement
from wds.domain.deliveries import Settlement

# -- replay ------------------------------------------------------------------------------------


async def test_replay_restarts_the_schedule_and_keeps_earlier_attempts(client, queue):
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


async def test_replay_makes_an_event_due_at_once(client, queue):
    [event_id] = await queue.delivered()
    assert await queue.claim() == []
    await post(client, f"/webhooks/events/{event_id}/replay")
    [claim] = await queue.claim()
    assert (claim.id, claim.attempt_number, claim.schedule_step) == (event_id, 2, 1)
    await queue.sound()


@pytest.mark.parametrize("how", ["header", "body"])
async def test_replay_repeated_under_its_request_id_changes_nothing(client, queue, how):
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
async def test_request_id_of_the_other_action_on_an_event_is_a_conflict(
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


async def test_replay_requested_concurrently_under_one_id_happens_once(client, queue):
    [event_id] = await queue.failed()
    path = f"/webhooks/events/{event_id}/replay"
    answers = await asyncio.gather(*(post(client, path, {"request_id": "r"}) for _ in range(10)))

    assert sorted(status for status, _ in answers) == [200] * 9 + [202]
    assert len((await queue.event(event_id))["history"]) == 1


async def test_replay_refuses_a_leased_event_and_keeps_its_lease(client, queue):
    [event_id] = await queue.insert()
    await queue.claim()
    before = await queue.event(event_id)

    assert await refused(client, f"/webhooks/events/{event_id}/replay") == (409, "in_delivery")
    assert await queue.event(event_id) == before


async def test_replay_makes_an_event_waiting_for_a_retry_due_now(client, queue):
    [event_id] = await queue.insert()
    await queue.attempt(succeed=False)
    assert await queue.claim() == []
    assert (await post(client, f"/webhooks/events/{event_id}/replay"))[0] == 202
    [claim] = await queue.claim()
    assert (claim.id, claim.schedule_step) == (event_id, 1)
    await queue.sound()


async def test_replay_refuses_a_waiting_event_with_all_attempts_left(client, queue):
    [event_id] = await queue.insert()
    path = f"/webhooks/events/{event_id}/replay"
    assert await refused(client, path) == (409, "already_waiting")
    await queue.attempt(succeed=True)
    assert (await post(client, path))[0] == 202
    assert await refused(client, path) == (409, "already_waiting")
    assert len((await queue.event(event_id))["history"]) == 1


async def test_replay_refuses_an_event_without_room_for_further_attempts(client, queue, db):
    [event_id] = await queue.failed()
    await db.events.update_one(
        {"_id": event_id}, {"$set": {"payload": bytes(16 * 1024**2 - 400_000)}}
    )

    assert await refused(client, f"/webhooks/events/{event_id}/replay") == (409, "no_room")


@pytest.mark.parametrize("action", ["replay", "cancel"])
async def test_replay_or_cancel_of_an_unknown_event_is_404(client, action):
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
async def test_instruction_with_an_invalid_field_is_refused_by_its_name(
    client, path, base, body, field
):
    status, answer = await post(client, path, {**base, **body})

    assert status == 422
    assert [each["field"] for each in answer["error"]["details"]] == [field]


# -- cancel ------------------------------------------------------------------------------------


async def test_cancel_makes_an_event_final_and_stops_its_retries(client, queue):
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
async def test_cancel_lets_the_attempt_under_way_end_and_none_follow(
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


async def test_cancel_undoes_the_replay_of_a_delivered_event(client, queue):
    [event_id] = await queue.delivered()
    await post(client, f"/webhooks/events/{event_id}/replay")
    _, answer = await post(client, f"/webhooks/events/{event_id}/cancel")

    assert answer["status"] == "DELIVERED"
    assert await queue.claim() == []
    await queue.sound()


async def test_replay_accepts_a_cancelled_event_that_was_never_attempted(client, queue):
    [event_id] = await queue.insert()
    await post(client, f"/webhooks/events/{event_id}/cancel")
    _, answer = await post(client, f"/webhooks/events/{event_id}/replay")

    assert answer["status"] == "RECEIVED"
    [claim] = await queue.claim()
    assert claim.attempt_number == 1
    await queue.sound()


async def test_cancel_refuses_a_final_event_and_one_being_cancelled(client, queue):
    [final] = await queue.delivered()
    [leased] = await queue.insert()
    await queue.claim()
    path = f"/webhooks/events/{leased}/cancel"
    assert await refused(client, f"/webhooks/events/{final}/cancel") == (409, "already_final")
    assert (await post(client, path, {"request_id": "r"}))[0] == 202
    assert await refused(client, path) == (409, "already_cancelled")
    assert (await post(client, path, {"request_id": "r"}))[0] == 200
    assert await refused(client, f"/webhooks/events/{leased}/replay") == (409, "already_cancelled")


# -- both --------------------------------------------------------------------------------------


async def test_replay_and_cancel_are_logged_once_with_operator_and_address(client, queue):
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


@pytest.mark.parametrize(
    ("path", "body"),
    [("/webhooks/events/x/replay", {}), ("/webhooks/cancel", {"status": "RECEIVED"})],
)
@pytest.mark.parametrize("request_id", [".", "..", "x" * 256])
async def test_idempotency_key_header_refuses_ids_that_no_address_can_have(
    client, path, body, request_id
):
    status, answer = await post(client, path, body, Idempotency_Key=request_id)
    assert status == 422
    assert [each["field"] for each in answer["error"]["details"]] == ["Idempotency-Key"]
