"""The forms that replay or cancel one event, or all that match."""

from __future__ import annotations

import random
from datetime import timedelta
from urllib.parse import quote

import pytest

from tests import history
from tests.integration.console.pages import hidden_fields
from tests.support import eventually, new_event
from wds.domain.errors import StoreUnavailableError
from wds.storage.rollups import Rollups


async def test_replay_form_submitted_twice_replays_once(get_page, stored_events, db):
    event = next(each for each in stored_events if each["status"] == "FAILED_PERMANENTLY")
    path = f"/console/events/{event['_id']}/replay"
    fields = {**await hidden_fields(get_page, path), "by": "ada", "reason": "fixed"}
    for _ in range(2):
        answer = await get_page(path, data=fields)
        assert (answer.status, answer.headers["Location"]) == (
            303,
            f"/console/events/{event['_id']}?notice=replayed",
        )
    now = await db.events.find_one({"_id": event["_id"]})
    assert now["status"] == "DELIVERING"
    [entry] = now["history"]
    assert (entry["by"], entry["reason"], entry["action"]) == ("ada", "fixed", "replay")
    page = await get_page(f"/console/events/{event['_id']}?notice=replayed")
    assert "Replayed" in page.text
    assert "by ada (127.0.0.1): fixed" in page.text


async def test_cancel_form_ends_a_waiting_event(get_page, stored_events, db):
    event = next(each for each in stored_events if each["status"] == "RECEIVED")
    path = f"/console/events/{event['_id']}/cancel"
    answer = await get_page(path, data=await hidden_fields(get_page, path))
    assert answer.headers["Location"].endswith("?notice=cancelled")
    assert (await db.events.find_one({"_id": event["_id"]}))["status"] == "FAILED_PERMANENTLY"


async def test_cancel_form_of_a_final_event_is_disabled_and_refused(get_page, stored_events):
    event = next(each for each in stored_events if each["status"] == "DELIVERED")
    path = f"/console/events/{event['_id']}/cancel"
    assert path not in (await get_page(f"/console/events/{event['_id']}")).links("/console/events/")
    page = await get_page(path)
    assert page.all("button", class_="danger", disabled=None)
    possible = next(each for each in stored_events if each["status"] == "RECEIVED")
    page = await get_page(f"/console/events/{possible['_id']}/cancel")
    assert page.all("button", class_="danger")
    assert not page.all("button", class_="danger", disabled=None)
    refused = await get_page(path, data=await hidden_fields(get_page, path))
    assert refused.status == 409
    assert "nothing to cancel" in refused.text


async def test_bulk_replay_form_replays_exactly_what_its_page_counted(get_page, stored_events, db):
    path = "/console/replay?status=FAILED_PERMANENTLY&range=all"
    page = await get_page(path)
    failed = [each["_id"] for each in stored_events if each["status"] == "FAILED_PERMANENTLY"]
    assert f"Replay {len(failed)} events?" in page.text
    fields = {each["name"]: each["value"] for each in page.all("input", type="hidden")}
    # Received after the page was rendered, so the form is not about it.
    late = history.made(
        new_event(b"{}"),
        history.utc_now() + timedelta(seconds=1),
        [history.attempt(1, history.utc_now(), random.Random(1), succeeds=False)],
        "FAILED_PERMANENTLY",
    )
    await db.events.insert_one(late)

    unconfirmed = await get_page("/console/replay", data=fields)
    assert unconfirmed.status == 422
    assert "Tick the box" in unconfirmed.text
    assert await db.bulk_actions.count_documents({}) == 0

    fields |= {"sure": "yes", "by": "ada", "per_second": "0"}
    started = await get_page("/console/replay", data=fields)
    again = await get_page("/console/replay", data=fields)
    assert started.status == again.status == 303
    assert started.headers["Location"] == again.headers["Location"]
    assert await db.bulk_actions.count_documents({}) == 1

    done = await eventually(
        lambda: get_page(started.headers["Location"]), lambda page: "Done" in page.text
    )
    assert f"{len(failed)} replayed" in done.text
    changed = [each["_id"] async for each in db.events.find({"history.by": "ada"}, {"_id": 1})]
    assert sorted(changed) == sorted(failed)
    assert "Replay" in (await get_page("/console/actions")).text


async def test_bulk_form_links_back_only_into_the_console(get_page, stored_events):
    query = "status=FAILED_PERMANENTLY&event_type=push&range=7d&sort=received_at&limit=25"
    fields = await hidden_fields(get_page, f"/console/cancel?{query}")
    assert stored_events
    for back in (fields["back"], f"https://evil.example/?{query}"):
        refused = await get_page("/console/cancel", data={**fields, "back": back})
        assert refused.status == 422
        assert refused.all("a", href=f"/console?{quote(query, safe='=&')}", class_="button")
    refused = await get_page("/console/cancel", data={**fields, "back": "javascript:alert(1)"})
    assert refused.all("a", href="/console", class_="button")


async def test_bulk_form_works_when_counting_takes_too_long(
    get_page, stored_events, db, monkeypatch
):
    async def slow(*_, **__):
        raise StoreUnavailableError

    monkeypatch.setattr(Rollups, "counts", slow)
    page = await get_page("/console/replay?range=all&status=FAILED_PERMANENTLY")
    assert "Replay all that match?" in page.text
    assert "Counting took too long" in page.text
    fields = {each["name"]: each["value"] for each in page.all("input", type="hidden")}
    started = await get_page("/console/replay", data=fields | {"sure": "yes"})
    done = await eventually(
        lambda: get_page(started.headers["Location"]), lambda page: "Done" in page.text
    )
    failed = sum(each["status"] == "FAILED_PERMANENTLY" for each in stored_events)
    assert f"{failed} replayed" in done.text
    assert await db.events.count_documents({"history": {"$exists": True}}) == failed
    assert (await get_page("/console/actions")).status == 200


@pytest.mark.parametrize(
    ("field", "value"), [("limit", "0"), ("limit", "x"), ("per_second", "-1"), ("by", "\x07")]
)
async def test_bulk_form_marks_the_invalid_field(get_page, stored_events, db, field, value):
    assert stored_events
    fields = {
        **await hidden_fields(get_page, "/console/replay?range=all"),
        "sure": "yes",
        field: value,
    }
    page = await get_page("/console/replay", data=fields)
    assert page.status == 422
    assert page.all("p", id=f"problem-{field}")
    assert await db.bulk_actions.count_documents({}) == 0
