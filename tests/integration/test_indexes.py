"""Each hot query is answered from its index, as `explain()` shows on a real collection."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support import new_event
from wds import hours, queries

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NEVER = datetime(9999, 1, 1, tzinfo=UTC)
FINISHED, FUTURE, DUE = 3000, 500, 40


pytestmark = pytest.mark.usefixtures("events")


@pytest.fixture
async def events(store, db):  # noqa: ARG001 - an open store has made the indexes
    """Make a collection of mostly finished events, some waiting for the future, a few due."""
    documents = []
    for number in range(FINISHED + FUTURE + DUE):
        event = new_event(b"{}", event_type=f"type.{number % 50}")
        document = queries.event_document(event, T0 + timedelta(seconds=number))
        if number < FINISHED:
            del document["next_attempt_at"]
            document["status"] = "DELIVERED" if number % 10 else "FAILED_PERMANENTLY"
        elif number < FINISHED + FUTURE:
            document["next_attempt_at"] = datetime.now(UTC) + timedelta(days=1)
        documents.append(document)
    await db.events.insert_many(documents)
    return db.events


def stages(plan: dict[str, Any]) -> list[dict[str, Any]]:
    found = [plan]
    for key in ("inputStage", "inputStages", "queryPlan"):
        below = plan.get(key, [])
        for each in below if isinstance(below, list) else [below]:
            found += stages(each)
    return found


async def explain(db, command: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the winning plan's stages and the execution statistics."""
    answer = await db.command("explain", command, verbosity="executionStats")
    if "stages" in answer:
        answer = answer["stages"][0]["$cursor"]
    return stages(answer["queryPlanner"]["winningPlan"]), answer["executionStats"]


def index_of(plan: list[dict[str, Any]]) -> str:
    assert not [stage for stage in plan if stage.get("stage") == "COLLSCAN"]
    return next(stage["indexName"] for stage in plan if stage.get("stage") == "IXSCAN")


async def test_a_look_at_what_is_due_reads_as_many_keys_as_it_wants_and_no_document(db):
    command = {
        "find": "events",
        "filter": queries.due_by("default", datetime.now(UTC)),
        "projection": {"_id": 1},
        "sort": dict(queries.DUE_ORDER),
        "limit": 16,
    }
    plan, stats = await explain(db, command)
    assert index_of(plan) == "claim"
    assert "SORT" not in {stage.get("stage") for stage in plan}
    assert stats["totalKeysExamined"] <= 17
    assert stats["totalDocsExamined"] == 0


async def test_counting_what_is_due_reads_no_document(db):
    due = queries.due_by("default", datetime.now(UTC))
    pipeline = [{"$match": due}, {"$limit": 100}, {"$group": {"_id": 1, "n": {"$sum": 1}}}]
    command = {"aggregate": "events", "pipeline": pipeline, "cursor": {}, "hint": "claim"}
    plan, stats = await explain(db, command)
    assert index_of(plan) == "claim"
    assert stats["totalDocsExamined"] == 0


async def test_an_index_made_otherwise_by_an_earlier_version_is_made_anew(store, db):
    await db.events.drop_index("claim")
    await db.events.create_index([("destination", 1), ("next_attempt_at", 1)], name="claim")
    await store.open()
    made = (await db.events.index_information())["claim"]
    assert made["key"] == list(queries.CLAIM_INDEX.document["key"].items())
    assert made["partialFilterExpression"] == {"next_attempt_at": {"$exists": True}}


async def test_a_claim_of_one_reads_one_key(db):
    command = {
        "findAndModify": "events",
        "query": queries.due("default"),
        "sort": dict(queries.DUE_ORDER),
        "update": queries.claim("token", "owner", 30_000, 5),
    }
    plan, stats = await explain(db, command)
    assert index_of(plan) == "claim"
    assert stats["totalKeysExamined"] == 1


async def test_a_look_at_the_queue_reads_nothing_but_what_is_due(db):
    await db.events.delete_many(queries.due("default"))
    for due in (queries.due("default"), queries.due_by("default", datetime.now(UTC))):
        command = {"find": "events", "filter": due, "limit": 16}
        plan, stats = await explain(db, {**command, "sort": dict(queries.DUE_ORDER)})
        assert index_of(plan) == "claim"
        assert stats["totalKeysExamined"] <= 1


async def test_leasing_and_settling_look_up_by_id(db):
    found = await db.events.find(queries.due("default"), {"_id": 1}).limit(8).to_list(None)
    ids = [document["_id"] for document in found]
    chosen = {"_id": {"$in": ids}, **queries.due("default")}
    write = {"q": chosen, "u": {"$set": {"x": 1}}, "hint": "_id_"}
    plan, stats = await explain(db, {"update": "events", "updates": [write]})
    assert index_of(plan) == "_id_"
    assert stats["totalDocsExamined"] <= 8
    fence = {"update": "events", "updates": [{"q": queries.held(ids[0], "t"), "u": {"$set": {}}}]}
    plan, stats = await explain(db, fence)
    assert {"IDHACK", "IXSCAN"} & {stage.get("stage") for stage in plan}
    assert stats["totalDocsExamined"] <= 1


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({}, "search"),
        ({"received_from": T0, "received_to": T0 + timedelta(seconds=2000)}, "search"),
        ({"statuses": ["FAILED_PERMANENTLY"]}, "search_status"),
        ({"event_types": ["type.7"]}, "search_type"),
    ],
    ids=["everything", "a range", "a status", "a type"],
)
async def test_a_page_is_read_in_index_order(db, filters, index):
    command = {
        "find": "events",
        "filter": queries.search_match(**filters),
        "sort": dict(queries.PAGE_ORDER),
        "limit": 51,
    }
    plan, stats = await explain(db, command)
    assert index_of(plan) == index
    assert "SORT" not in {stage.get("stage") for stage in plan}
    assert stats["totalDocsExamined"] <= 51


async def test_a_deep_page_by_cursor_reads_no_more_than_the_first(db):
    match = queries.after(queries.search_match(), T0 + timedelta(seconds=100), "f" * 32)
    command = {"find": "events", "filter": match, "sort": dict(queries.PAGE_ORDER), "limit": 51}
    plan, stats = await explain(db, command)
    assert index_of(plan) == "search"
    assert stats["totalKeysExamined"] <= 60


@pytest.mark.parametrize(
    "filters",
    [{}, {"statuses": ["DELIVERED", "RECEIVED"]}, {"event_types": ["type.1"]}],
    ids=["everything", "a status", "a type"],
)
async def test_counting_fetches_no_document(db, filters):
    spans = [(T0, T0 + timedelta(seconds=50)), (T0 + timedelta(seconds=60), NEVER)]
    command = {
        "aggregate": "events",
        "pipeline": hours.tally(spans, **filters),
        "cursor": {},
    }
    plan, stats = await explain(db, {**command, "hint": queries.COVERING_INDEX})
    assert index_of(plan) == "search"
    assert stats["totalDocsExamined"] == 0
