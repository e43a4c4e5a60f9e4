"""Each hot query is answered from its index, as `explain()` shows on a real collection."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support import new_event
from wds.domain.deliveries import Settlement, Status
from wds.domain.event_filter import OLDEST_FIRST, SORTS, EventFilter, Position
from wds.domain.events import derived_id
from wds.domain.operator_actions import Action, Instruction, affected_events
from wds.storage import (
    action_queries,
    change_stream,
    event_documents,
    event_queries,
    indexes,
    lease_queries,
    rollup_queries,
)
from wds.storage.event_queries import match

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NEVER = datetime(9999, 1, 1, tzinfo=UTC)
FINISHED, FUTURE, DUE = 3000, 500, 40


pytestmark = pytest.mark.usefixtures("events")


@pytest.fixture
async def events(store, db):  # noqa: ARG001 - an open store has existing the indexes
    """Make a collection of mostly finished events, some waiting for the future, a few due."""
    documents = []
    for number in range(FINISHED + FUTURE + DUE):
        event = new_event(b"{}", event_type=f"type.{number % 50}", key=f"key-{number}")
        document = event_documents.event_document(event, T0 + timedelta(seconds=number))
        if number < FINISHED:
            del document["next_attempt_at"]
            document["status"] = "DELIVERED" if number % 10 else "FAILED_PERMANENTLY"
            document["attempt_count"] = 1 if number % 10 else 5
            document["last_status_code"] = 200 if number % 10 else 503
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


async def test_peek_reads_one_key_per_id_and_no_document(db):
    command = lease_queries.peek("default", datetime.now(UTC), 16)
    del command["singleBatch"]  # explain knows no batches
    plan, stats = await explain(db, command)
    assert index_of(plan) == "claim"
    assert "SORT" not in {stage.get("stage") for stage in plan}
    assert stats["totalKeysExamined"] <= 17
    assert stats["totalDocsExamined"] == 0


async def test_backlog_count_reads_no_document(db):
    due = lease_queries.due_at("default", datetime.now(UTC))
    pipeline = [{"$match": due}, {"$limit": 100}, {"$group": {"_id": 1, "n": {"$sum": 1}}}]
    command = {"aggregate": "events", "pipeline": pipeline, "cursor": {}, "hint": "claim"}
    plan, stats = await explain(db, command)
    assert index_of(plan) == "claim"
    assert stats["totalDocsExamined"] == 0


async def test_make_indexes_replaces_an_index_with_other_keys(store, db):
    await db.events.drop_index("claim")
    await db.events.create_index([("destination", 1), ("next_attempt_at", 1)], name="claim")
    await store.open()
    existing = (await db.events.index_information())["claim"]
    assert existing["key"] == list(indexes.CLAIM_INDEX.document["key"].items())
    assert existing["partialFilterExpression"] == {"next_attempt_at": {"$exists": True}}


async def test_make_indexes_drops_obsolete_indexes_after_their_replacement(store, db):
    """The indexes are those of 0.1.0; two replicas of this version start at once."""
    for name in ("search_time", "search_attempts", "search_source"):
        await db.events.drop_index(name)
    newest = [("received_at", -1), ("_id", -1)]
    retried = {"attempt_count": {"$gte": 2}}
    await db.events.create_index([*newest, ("status", 1)], name="search")
    await db.events.create_index(newest, name="search_retried", partialFilterExpression=retried)
    await asyncio.gather(store.open(), store.open())
    existing = (await db.events.index_information()).keys() - {"_id_"}
    assert existing == {index.document["name"] for index in indexes.EVENT_INDEXES}
    page, _ = await store.reader.page(
        match(EventFilter()), skip=0, limit=5, after=None, include_payload=False
    )
    assert len(page) == 5


async def test_claim_of_one_looks_up_by_id(db):
    due = await db.events.find_one(lease_queries.claimable("default"), {"_id": 1})
    command = {
        "findAndModify": "events",
        "query": {**due, **lease_queries.claimable("default")},
        "update": lease_queries.claim("token", "owner", 30_000, 5),
        "hint": "_id_",
    }
    plan, stats = await explain(db, command)
    assert index_of(plan) == "_id_"
    assert stats["totalKeysExamined"] == 1


async def test_claimable_and_due_at_read_only_due_events(db):
    await db.events.delete_many(lease_queries.claimable("default"))
    for due in (
        lease_queries.claimable("default"),
        lease_queries.due_at("default", datetime.now(UTC)),
    ):
        command = {"find": "events", "filter": due, "limit": 16}
        plan, stats = await explain(db, {**command, "sort": dict(lease_queries.DUE_ORDER)})
        assert index_of(plan) == "claim"
        assert stats["totalKeysExamined"] <= 1


async def test_earliest_due_reads_one_key(db):
    plan, stats = await explain(db, change_stream.earliest_due("default"))
    assert index_of(plan) == "claim"
    assert (stats["nReturned"], stats["totalKeysExamined"]) == (1, 1)
    assert stats["totalDocsExamined"] == 0


async def test_claim_and_settle_look_up_by_id(store, db):
    found = (
        await db.events.find(lease_queries.claimable("default"), {"_id": 1}).limit(8).to_list(None)
    )
    ids = [document["_id"] for document in found]
    chosen = {"_id": {"$in": ids}, **lease_queries.claimable("default")}
    write = {"q": chosen, "u": {"$set": {"x": 1}}, "hint": "_id_"}
    plan, stats = await explain(db, {"update": "events", "updates": [write]})
    assert index_of(plan) == "_id_"
    assert stats["totalDocsExamined"] <= 8
    claimed = await store.queue.claim("default", 8, owner="d", lease_s=60, max_attempts=5)
    for held in (claimed.claims, claimed.claims[:1]):
        [settled] = lease_queries.settlement_writes([Settlement(each, None) for each in held])
        write = {"q": settled._filter, "u": settled._doc, "hint": settled._hint, "multi": True}
        plan, stats = await explain(db, {"update": "events", "updates": [write]})
        assert {"_id_", "IDHACK"} & {stage.get("indexName", stage.get("stage")) for stage in plan}
        assert stats["totalDocsExamined"] <= len(held)


NEWEST, OLDEST = (SORTS[name] for name in ("-received_at", "received_at"))
KEY = derived_id("default", "key-7")
EVERY_FILTER = {
    "everything": {},
    "a range": {"from_": T0, "to": T0 + timedelta(seconds=2000)},
    "a status": {"status": ["FAILED_PERMANENTLY"]},
    "statuses": {"status": ["DELIVERED", "RECEIVED"]},
    "a type": {"event_type": ["type.7"]},
    "types": {"event_type": [f"type.{number}" for number in range(25)]},
    "all types": {"event_type": [f"type.{number}" for number in range(51)]},
    "a type and a status": {"event_type": ["type.7"], "status": ["DELIVERED"]},
    "a source": {"source": ["default"]},
    "a destination": {"destination": ["default"]},
    "attempts": {"min_attempts": 2},
    "a status code": {"last_status_code": [503]},
    "status codes": {"last_status_code": [0, 503]},
    "attempts and a type": {"min_attempts": 2, "event_type": ["type.10"]},
    "all but a key and an id": {
        "last_status_code": [503],
        "min_attempts": 2,
        "status": ["FAILED_PERMANENTLY"],
        "event_type": ["type.10"],
        "source": ["default"],
        "destination": ["default"],
        "from_": T0,
    },
    "a key": {"idempotency_key": "key-7"},
    "an id": {"id_prefix": KEY},
    "a short id prefix": {"id_prefix": KEY[:2]},
}


def find(query, order=NEWEST, limit=51):
    rewritten, hint = event_queries.in_time_order(query)
    command = {"find": "events", "filter": rewritten, "sort": dict(order), "limit": limit}
    return command if hint is None else {**command, "hint": hint}


@pytest.mark.parametrize("order", [NEWEST, OLDEST], ids=["newest", "oldest"])
@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("everything", "search_time"),
        ("a range", "search_time"),
        ("a status", "search_status"),
        ("statuses", "search_status"),
        ("a type", "search_type"),
        ("types", "search_type"),
        ("a type and a status", "search_type"),
        ("a source", "search_source"),
        ("a destination", "search_time"),
        ("attempts", "search_time"),
        ("a status code", "search_code"),
        ("status codes", "search_code"),
        ("attempts and a type", "search_time"),
        ("all but a key and an id", "search_code"),
    ],
)
async def test_page_reads_in_index_order_and_fetches_only_its_own_events(db, name, index, order):
    plan, stats = await explain(db, find(match(EventFilter(**EVERY_FILTER[name])), order))
    assert index_of(plan) == index
    assert "SORT" not in {stage.get("stage") for stage in plan}
    assert stats["totalDocsExamined"] <= 51


async def test_page_of_a_type_in_a_status_it_never_had_reads_no_key(db):
    query = match(EventFilter(event_type=["type.7"], status=["DELIVERING"]))
    plan, stats = await explain(db, find(query))
    assert index_of(plan) == "search_type"
    assert stats["totalKeysExamined"] <= 1


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("name", EVERY_FILTER)
async def test_page_by_any_index_has_the_events_of_a_full_scan(store, db, name, sort):
    query = match(EventFilter(**EVERY_FILTER[name]))
    page, more = await store.reader.page(
        query, sort=sort, skip=2, limit=20, after=None, include_payload=False
    )
    scanned = await db.events.find(query, hint={"$natural": 1}).to_list(None)
    fields = [field for field, _ in SORTS[sort]]
    scanned.sort(key=lambda each: [each[field] for field in fields], reverse=sort[0] == "-")
    assert [each["_id"] for each in page] == [each["_id"] for each in scanned[2:22]]
    assert more == (len(scanned) > 22)


@pytest.mark.parametrize("order", ["attempt_count", "-attempt_count"])
async def test_split_by_attempts_reads_one_page_in_order_of_attempts(db, order):
    query = match(
        EventFilter(min_attempts=2, status=["FAILED_PERMANENTLY"], last_status_code=[503])
    )
    [part] = event_queries.split_by_attempts(query, SORTS[order], None)
    command = {"find": "events", "filter": part.query, "sort": dict(part.order), "limit": 20}
    plan, stats = await explain(db, {**command, "hint": "search_attempts"})
    assert "SORT" not in {stage.get("stage") for stage in plan}
    assert stats["totalKeysExamined"] <= 21
    assert stats["totalDocsExamined"] == 20


async def test_page_of_a_rare_source_reads_no_other_source(db):
    rare = [each["_id"] for each in await db.events.find({}, {"_id": 1}).limit(3).to_list(None)]
    await db.events.update_many({"_id": {"$in": rare}}, {"$set": {"source": "rare"}})
    plan, stats = await explain(db, find(match(EventFilter(source=["rare"]))))
    assert index_of(plan) == "search_source"
    assert stats["totalKeysExamined"] <= 4
    assert stats["totalDocsExamined"] == 3


@pytest.mark.parametrize("order", [NEWEST, OLDEST], ids=["newest", "oldest"])
@pytest.mark.parametrize("more", [{}, {"last_status_code": [200, 503]}, {"min_attempts": 1}])
async def test_within_reads_no_key_between_its_spans(db, order, more):
    spans = [
        (T0 + timedelta(seconds=position), T0 + timedelta(seconds=position + 2))
        for position in range(0, 1000, 100)
    ]
    query = match(EventFilter(source=["default"], destination=["default"], **more))
    plan, stats = await explain(db, find(event_queries.within(query, spans), order))
    assert "SORT" not in {stage.get("stage") for stage in plan}
    assert stats["nReturned"] == 20
    assert stats["totalKeysExamined"] <= 40
    assert stats["totalDocsExamined"] == 20


async def test_page_and_bulk_action_name_their_index(store, db):
    await db.command("profile", 2)
    await store.reader.page(
        match(EventFilter(event_type=["type.7"])),
        skip=0,
        limit=5,
        after=None,
        include_payload=False,
    )
    await store.bulk_actions.start(
        Instruction(Action.REPLAY, "r", "ann", "127.0.0.1"),
        filters='{"event_type": "type.7"}',
        limit=5,
        per_second=None,
        matched=None,
    )
    await store.bulk_actions.step(await store.bulk_actions.take("w"))
    await db.command("profile", 0)
    read = {"command.find": "events", "command.sort": {"$exists": True}}
    found = await db["system.profile"].find(read).to_list(None)
    assert [each["command"]["hint"] for each in found] == ["search_type"] * 2


def test_in_time_order_uses_the_time_index_for_more_ranges_than_mongodb_merges():
    types = [f"type.{number}" for number in range(event_queries.MAX_MERGED // len(Status))]
    assert event_queries.in_time_order(match(EventFilter(event_type=types * 2)))[1] == "search_type"
    assert (
        event_queries.in_time_order(match(EventFilter(event_type=[*types, "one more"])))[1]
        == "search_time"
    )


@pytest.mark.parametrize(
    ("action", "status"), [(Action.REPLAY, "RECEIVED"), (Action.CANCEL, "DELIVERED")]
)
def test_affected_events_is_none_for_a_status_the_action_cannot_change(action, status):
    assert affected_events(action, EventFilter(status=[status]), datetime.now(UTC)) is None


@pytest.mark.parametrize(("name", "index"), [("a key", "key"), ("an id", "_id_")])
async def test_page_of_a_key_or_an_id_is_looked_up_by_its_own_index(db, name, index):
    plan, stats = await explain(db, find(match(EventFilter(**EVERY_FILTER[name]))))
    assert index_of(plan) == index
    assert stats["totalDocsExamined"] <= 2


@pytest.mark.parametrize("order", [NEWEST, OLDEST], ids=["newest", "oldest"])
async def test_page_after_a_deep_cursor_reads_no_more_than_the_first(db, order):
    seconds = 100 if order is NEWEST else FINISHED
    position = Position(T0 + timedelta(seconds=seconds), "f" * 32)
    plan, stats = await explain(
        db, find(event_queries.after(match(EventFilter()), order, position), order)
    )
    assert index_of(plan) == "search_time"
    assert stats["totalKeysExamined"] <= 60


@pytest.mark.parametrize("name", EVERY_FILTER)
async def test_counts_fetch_no_document_except_for_a_key_or_an_id(db, name):
    query = match(EventFilter(**EVERY_FILTER[name]))
    hint = event_queries.hint(query)
    command = {"aggregate": "events", "pipeline": event_queries.counts(query), "cursor": {}}
    plan, stats = await explain(db, {**command, "hint": hint})
    assert index_of(plan) == hint
    assert stats["totalDocsExamined"] <= (1 if hint in {"key", "_id_"} else 0)


@pytest.mark.parametrize(
    "chosen",
    [{}, {"status": ["DELIVERED", "RECEIVED"]}, {"event_type": ["type.1"]}, {"min_attempts": 2}],
    ids=["everything", "a status", "a type", "attempts"],
)
async def test_count_pairs_and_count_kinds_fetch_no_document(db, chosen):
    spans = [(T0, T0 + timedelta(seconds=50)), (T0 + timedelta(seconds=60), NEVER)]
    query = match(EventFilter(**chosen))
    pipelines = [rollup_queries.count_pairs(spans, query), rollup_queries.count_kinds(spans)]
    for pipeline in pipelines:
        command = {"aggregate": "events", "pipeline": pipeline, "cursor": {}}
        plan, stats = await explain(db, {**command, "hint": indexes.COVERING_INDEX})
        assert index_of(plan) == "search_time"
        assert stats["totalDocsExamined"] == 0


@pytest.mark.parametrize("sort", ["attempt_count", "-attempt_count"])
async def test_sort_keys_fetches_no_document(db, sort):
    pipeline = event_queries.sort_keys(match(EventFilter()), SORTS[sort], 51)
    command = {"aggregate": "events", "pipeline": pipeline, "cursor": {}}
    plan, stats = await explain(db, {**command, "hint": event_queries.hint(match(EventFilter()))})
    assert index_of(plan) == "search_time"
    assert stats["totalDocsExamined"] == 0


@pytest.mark.parametrize("hours_later", [0, 24])
async def test_live_events_reads_few_keys(db, hours_later):
    begin = T0 + timedelta(seconds=FINISHED, hours=hours_later)
    command = {
        "find": "events",
        "filter": rollup_queries.live_events((begin, begin + rollup_queries.HOUR)),
        "projection": {"_id": 1},
        "limit": 1,
        "hint": rollup_queries.LIVE_INDEX,
    }
    plan, stats = await explain(db, command)
    assert index_of(plan) == rollup_queries.LIVE_INDEX
    assert stats["nReturned"] == (0 if hours_later else 1)
    assert stats["totalKeysExamined"] <= 4
    assert stats["totalDocsExamined"] == 0


@pytest.mark.parametrize("action", Action)
async def test_bulk_action_finds_its_next_chunk_in_index_order(db, action):
    query = match(affected_events(action, EventFilter(event_type=["type.7"]), datetime.now(UTC)))
    position = Position(T0 + timedelta(seconds=1000), "0")
    command = find(event_queries.after(query, OLDEST, position), OLDEST, 500)
    plan, stats = await explain(db, command)
    assert index_of(plan) == "search_type"
    assert not {"SORT"} & {stage.get("stage") for stage in plan}
    assert stats["nReturned"] <= 40


@pytest.mark.parametrize("action", Action)
async def test_bulk_action_changes_a_chunk_by_id(db, action):
    found = await db.events.find({}, {"_id": 1}).limit(50).to_list(None)
    instruction = Instruction(action, "r", "ann", "127.0.0.1")
    query = action_queries.applicable([each["_id"] for each in found], instruction)
    command = {"update": "events", "updates": [{"q": query, "u": [], "multi": True}]}
    command["updates"][0]["u"] = action_queries.update(instruction)
    plan, stats = await explain(db, command)
    assert index_of(plan) in {"_id_", "claim"}
    assert stats["totalDocsExamined"] <= max(50, FUTURE + DUE)


async def test_free_bulk_action_finds_bulk_actions_by_their_state(db):
    command = {
        "find": "bulk_actions",
        "filter": action_queries.free_bulk_action(),
        "sort": {"started_at": 1},
    }
    plan, _ = await explain(db, command)
    assert index_of(plan) == "running"


async def test_control_counts_without_their_index_read_every_document(db):
    await db.events.drop_index("search_time")
    command = {
        "aggregate": "events",
        "pipeline": event_queries.counts(match(EventFilter(source=["default"]))),
        "cursor": {},
    }
    _, stats = await explain(db, command)
    assert stats["totalDocsExamined"] == FINISHED + FUTURE + DUE


async def test_status_counts_read_the_index_alone(db):
    for filters in ({}, {"min_attempts": 2}, {"source": ["default"], "from_": T0}):
        query = match(EventFilter(**filters))
        pipeline = event_queries.status_counts(query, "minute", 5)
        command = {"aggregate": "events", "pipeline": pipeline, "cursor": {}}
        plan, stats = await explain(db, {**command, "hint": event_queries.hint(query)})
        assert index_of(plan) == event_queries.hint(query)
        assert stats["totalDocsExamined"] == 0


async def test_oldest_event_query_reads_one_key(db):
    command = {
        "find": "events",
        "filter": event_queries.ANY,
        "projection": {"_id": 0, "received_at": 1},
    }
    order = dict(SORTS[OLDEST_FIRST])
    plan, stats = await explain(db, {**command, "sort": order, "limit": 1})
    assert index_of(plan) == indexes.COVERING_INDEX
    assert stats["totalKeysExamined"] == 1


async def test_page_backwards_starts_reading_at_its_position(db):
    order = SORTS[OLDEST_FIRST]
    position = Position(T0 + timedelta(seconds=100), "0" * 32)
    query = event_queries.after(match(EventFilter()), order, position)
    command = {"find": "events", "filter": query, "sort": dict(order), "limit": 51}
    plan, stats = await explain(db, {**command, "projection": {"payload": 0}})
    assert index_of(plan) == indexes.COVERING_INDEX
    assert "SORT" not in {stage.get("stage") for stage in plan}
    assert stats["totalDocsExamined"] <= 52
