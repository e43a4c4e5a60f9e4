"""`POST /webhooks/ingest/batch`: all events are stored, or none."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

from tests.integration.ingestion.bodies import ODD, raw
from wds.domain.events import derived_id

ARRAY, OBJECT = b"\n[%s] ", b' { "events" : [%s]\t}'
FORMS = pytest.mark.parametrize("form", [ARRAY, OBJECT], ids=["array", "object"])


@FORMS
async def test_batch_is_answered_with_receipts_in_order(client, db, form):
    keys = [f"k{n}" for n in range(20)]
    events = b",".join(b'{"idempotency_key":"%s"}' % key.encode() for key in keys)
    status, answer = await client.batch(form % events)

    assert (status, answer["accepted"], answer["duplicates"]) == (202, 20, 0)
    assert answer["events"] == [
        {"id": derived_id("default", key), "status": "RECEIVED", "duplicate": False} for key in keys
    ]
    assert await db.events.count_documents({}) == 20


@FORMS
async def test_batch_keeps_the_exact_bytes_of_each_element(client, form):
    _, answer = await client.batch(form % b" ,\n\t".join(body.strip() for body in ODD.values()))
    paths = [f"/webhooks/events/{event['id']}/payload" for event in answer["events"]]

    assert [await raw(client, path) for path in paths] == [body.strip() for body in ODD.values()]


async def test_batch_counts_a_repeat_within_it_as_a_duplicate(client, db):
    keyed = b'{"idempotency_key":"k"}'
    status, answer = await client.batch(ARRAY % b",".join([keyed, b"{}", keyed, b"{}"]))

    assert (status, answer["accepted"], answer["duplicates"]) == (202, 3, 1)
    assert [event["duplicate"] for event in answer["events"]] == [False, False, True, False]
    assert answer["events"][0]["id"] == answer["events"][2]["id"]
    assert await db.events.count_documents({}) == 3


@pytest.mark.parametrize(
    ("events", "fields"),
    [
        pytest.param(b'{},{},"no",{}', ["events.2"], id="a string"),
        pytest.param(b"{},[],{},null", ["events.1", "events.3"], id="an array and a null"),
        pytest.param(b'{},{"idempotency_key":5}', ["events.1.idempotency_key"], id="a bad key"),
        pytest.param(
            b'1,{"idempotency_key":5}', ["events.0", "events.1.idempotency_key"], id="both kinds"
        ),
        pytest.param(b"", ["events"], id="no event"),
        pytest.param(b",".join([b"{}"] * 1001), ["events"], id="1001 events"),
    ],
)
@FORMS
async def test_batch_with_a_wrong_event_is_refused_whole(client, db, form, events, fields):
    status, answer = await client.batch(form % events)

    assert (status, answer["error"]["code"]) == (422, "invalid_request")
    assert [detail["field"] for detail in answer["error"]["details"]] == fields
    assert await db.events.count_documents({}) == 0


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        pytest.param(b'{"events":[{}],"more":1}', 422, "more", id="another field"),
        pytest.param(b'{"events":[{}],"events":[{}]}', 422, "events", id="events twice"),
        pytest.param(b'{"events":{}}', 422, "events", id="events no array"),
        pytest.param(b"{}", 422, "events", id="no events"),
        pytest.param(b"7", 422, "", id="a number"),
        pytest.param(b"[{}", 400, None, id="cut off"),
        pytest.param(b"[{}] x", 400, None, id="text behind"),
        pytest.param(b"[{},]", 400, None, id="comma behind"),
    ],
)
async def test_batch_of_another_shape_is_refused(client, db, body, status, field):
    answered, answer = await client.batch(body)

    assert answered == status
    assert [d["field"] for d in answer["error"]["details"]] == [field] * (status == 422)
    assert await db.events.count_documents({}) == 0


async def test_batch_of_1000_is_stored(client, db):
    status, answer = await client.batch(ARRAY % b",".join([b"{}"] * 1000))

    assert (status, answer["accepted"], len(answer["events"])) == (202, 1000, 1000)
    assert await db.events.count_documents({}) == 1000


async def test_batch_in_conflict_with_a_stored_key_stores_nothing(client, db):
    await client.ingest(b'{"idempotency_key":"k"}')
    status, answer = await client.batch(b'[{"n":1},{"idempotency_key":"k","n":2},{"n":3}]')

    assert status == 409
    assert [d["field"] for d in answer["error"]["details"]] == ["events.1.idempotency_key"]
    assert await db.events.distinct("payload") == [b'{"idempotency_key":"k"}']


async def test_batch_in_conflict_with_itself_stores_nothing(client, db):
    status, answer = await client.batch(b'[{"idempotency_key":"k"},{"idempotency_key":"k","n":2}]')

    assert status == 409
    assert [d["field"] for d in answer["error"]["details"]] == ["events.1.idempotency_key"]
    assert await db.events.count_documents({}) == 0


async def test_batches_that_contradict_each_other_are_never_stored_in_part(client, db):
    bodies = [b'[{"idempotency_key":"k","n":%d},{"n":%d}]' % (n, n) for n in range(8)]
    answers = await asyncio.gather(*map(client.batch, bodies))
    stored = [json.loads(each["payload"])["n"] async for each in db.events.find()]
    won = [n for n, (status, _) in enumerate(answers) if status == 202]

    assert Counter(status for status, _ in answers) == {202: 1, 409: 7}
    assert sorted(stored) == sorted(won * 2)


async def test_batch_with_a_key_in_the_header_is_repeatable(client, db):
    body = b'[{"n":1},{"n":2,"idempotency_key":"own"},{"n":1}]'
    _, first = await client.batch(body, Idempotency_Key="k")
    status, again = await client.batch(body, Idempotency_Key="k")

    assert (first["accepted"], first["duplicates"]) == (3, 0)
    assert (status, again["accepted"], again["duplicates"]) == (202, 0, 3)
    assert [e["id"] for e in again["events"]] == [e["id"] for e in first["events"]]
    assert await db.events.distinct("idempotency_key") == ["k/0", "k/2", "own"]
    assert await db.events.count_documents({}) == 3


@pytest.mark.parametrize("key", ["", "k" * 252], ids=["empty", "too long"])
async def test_batch_with_an_unusable_key_is_refused(client, db, key):
    status, answer = await client.batch(b"[{}]", Idempotency_Key=key)

    assert (status, answer["error"]["details"][0]["field"]) == (422, "idempotency_key")
    assert await db.events.count_documents({}) == 0
