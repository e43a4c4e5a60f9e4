"""The pages of bulk actions."""

from __future__ import annotations

from datetime import timedelta

from tests import history
from tests.integration.console.hostile_documents import bulk_action
from tests.integration.console.pages import hidden_fields


async def test_bulk_action_page_stops_a_running_action(get_page, stored_events, db, monkeypatch):
    assert stored_events
    monkeypatch.setattr("wds.storage.bulk_actions.CHUNK", 1)
    started = bulk_action("r1", history.utc_now()) | {
        "state": "running",
        "lease": {"token": "t", "owner": "o", "until": history.utc_now() + timedelta(minutes=1)},
    }
    del started["finished_at"]
    await db.bulk_actions.insert_one(started)
    fields = await hidden_fields(get_page, "/console/actions/r1")
    answer = await get_page("/console/actions/r1/stop", data=fields)
    assert answer.headers["Location"] == "/console/actions/r1"
    assert (await db.bulk_actions.find_one({"_id": "r1"}))["stop_requested"]
    assert "Stopping" in (await get_page("/console/actions/r1")).text
