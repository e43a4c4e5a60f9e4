"""`POST /webhooks/ingest`: the answers, and the stored events byte for byte."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from tests.integration.conftest import Client
from tests.integration.ingestion.bodies import ODD, raw
from tests.support import SECRET, eventually, make_settings, signed
from wds.domain.events import derived_id
from wds.ingest import create_app
from wds.ingestion import group_writer
from wds.signing.hmac_sha256 import sign
from wds.storage.event_writer import EventWriter
from wds.web.server import listening


async def test_ingest_answers_a_stored_event_with_202_and_its_receipt(client, db):
    status, answer = await client.ingest(b'{"n":1}')

    assert status == 202
    assert answer == {"id": answer["id"], "status": "RECEIVED", "duplicate": False}
    assert [each["_id"] async for each in db.events.find()] == [answer["id"]]


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
async def test_ingest_keeps_the_exact_bytes_of_a_payload(client, db, body):
    status, answer = await client.ingest(body)
    stored = await db.events.find_one()

    assert status == 202
    assert stored["payload"] == body
    assert stored["payload_sha256"] == hashlib.sha256(body).digest()
    assert await raw(client, f"/webhooks/events/{answer['id']}/payload") == body


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
async def test_get_event_shows_its_payload_verbatim(client, body):
    _, answer = await client.ingest(body)
    shown = await raw(client, f"/webhooks/events/{answer['id']}")
    splice = b',"payload":' + body + b"}"

    assert shown.endswith(splice)
    assert json.loads(shown.removesuffix(splice) + b"}")["id"] == answer["id"]


async def test_get_payload_has_its_own_content_type_and_is_never_run(client):
    _, answer = await client.ingest(b"{}", Content_Type="application/cloudevents+json")
    url = f"{client.url}/webhooks/events/{answer['id']}/payload"
    async with client.session.get(url) as response:
        assert response.headers["Content-Type"] == "application/cloudevents+json"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Content-Security-Policy"] == "sandbox"


async def test_get_event_shows_every_field_before_the_first_attempt(client):
    body = b'{"type":"order.created","idempotency_key":"k"}'
    _, answer = await client.ingest(body, X_Request_Id="r-1")
    status, shown = await client.get(f"/webhooks/events/{answer['id']}")

    assert status == 200
    at = shown["received_at"]
    assert shown == {
        "id": answer["id"],
        "source": "default",
        "event_type": "order.created",
        "idempotency_key": "k",
        "content_type": "application/json",
        "headers": {**shown["headers"], "x-request-id": "r-1"},
        "payload_sha256": hashlib.sha256(body).hexdigest(),
        "received_at": at,
        "finished_at": None,
        "destination": "default",
        "status": "RECEIVED",
        "attempt_count": 0,
        "next_attempt_at": at,
        "lease": None,
        "trace": None,
        "attempts": [],
        "attempts_before": 0,
        "cancelling": False,
        "history": [],
        "payload": json.loads(body),
    }
    assert abs(datetime.fromisoformat(at) - datetime.now(UTC)) < timedelta(minutes=1)


async def test_ingest_stores_a_live_due_event_without_a_lease(client, db):
    body = b'{"event_type":"t","idempotency_key":"k"}'
    await client.ingest(body, User_Agent="sender/1")
    stored = await db.events.find_one()

    assert stored == {
        "_id": derived_id("default", "k"),
        "source": "default",
        "event_type": "t",
        "idempotency_key": "k",
        "content_type": "application/json",
        "headers": {"user-agent": "sender/1"},
        "payload": body,
        "payload_sha256": hashlib.sha256(body).digest(),
        "received_at": stored["received_at"],
        "destination": "default",
        "status": "RECEIVED",
        "attempt_count": 0,
        "next_attempt_at": stored["received_at"],
        "attempts": [],
    }
    assert abs(stored["received_at"] - datetime.now(UTC)) < timedelta(minutes=1)


async def test_ingest_stores_only_listed_headers(client, db):
    listed = {
        "User-Agent": "sender/1",
        "X-Request-Id": "r-1",
        "X-Event-Type": "a",
        "X-GitHub-Event": "push",
        "X-GitHub-Delivery": "d-1",
        "Idempotency-Key": "k",
        "Traceparent": "00-1-2-01",
    }
    credentials = {"Authorization": "Bearer x", "Cookie": "c=1", "X-Api-Key": "x"}
    body = b"{}"
    headers = {**signed(body), **listed, **credentials}
    status, _ = await client.post("/webhooks/ingest", body, headers)
    stored = await db.events.find_one()

    assert status == 202
    assert stored["headers"] == {name.lower(): value for name, value in listed.items()}


async def test_ingest_drops_a_listed_header_that_is_long_or_not_ascii(client, db):
    status, _ = await client.ingest(b"{}", X_Request_Id="r" * 513, Traceparent="é")
    stored = await db.events.find_one()

    assert status == 202
    assert list(stored["headers"]) == ["user-agent"]


BOTH = {"X_Event_Type": "own", "X_GitHub_Event": "github"}


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        pytest.param(b'{"type":"t","event_type":"e"}', BOTH, "e", id="event_type first"),
        pytest.param(b'{"type":"t"}', BOTH, "t", id="then type"),
        pytest.param(b"{}", BOTH, "own", id="then X-Event-Type"),
        pytest.param(b"{}", {"X_GitHub_Event": "github"}, "github", id="then X-GitHub-Event"),
        pytest.param(b"{}", {}, None, id="else none"),
        pytest.param(b'{"event_type":7,"type":"t"}', BOTH, "t", id="number falls to type"),
        pytest.param(b'{"event_type":{},"type":[]}', BOTH, "own", id="others fall to header"),
        pytest.param(b'{"event_type":null,"type":""}', BOTH, "own", id="null and empty fall"),
        pytest.param(b'{"event_type":"%s"}' % (b"e" * 256), BOTH, "own", id="too long falls"),
        pytest.param(rb'{"event_type":"\ud800"}', BOTH, "own", id="lone surrogate falls"),
        pytest.param(b'{"event_type":"%s"}' % (b"e" * 255), BOTH, "e" * 255, id="255 stay"),
    ],
)
async def test_ingest_takes_the_first_usable_event_type(client, db, body, headers, expected):
    status, answer = await client.ingest(body, **headers)
    stored = await db.events.find_one()
    _, found = await client.post("/webhooks/search", json.dumps({}).encode())

    assert status == 202
    assert stored["event_type"] == expected
    assert [(e["id"], e["event_type"]) for e in found["events"]] == [(answer["id"], expected)]


@pytest.mark.parametrize("name", ["X-Webhook-Signature", "X-Hub-Signature-256"])
async def test_ingest_accepts_either_signature_header(client, db, name):
    headers = {"Content-Type": "application/json", name: sign(SECRET, b"{}")}
    status, _ = await client.post("/webhooks/ingest", b"{}", headers)

    assert status == 202
    assert await db.events.count_documents({}) == 1


async def test_ingest_accepts_every_secret_while_rotating_and_no_other(client, engines, store, db):
    settings = make_settings(engines, WDS_HMAC_SECRET="old new")
    async with listening(create_app(settings, store), "127.0.0.1", 0) as port:
        rotating = Client(client.session, f"http://127.0.0.1:{port}")
        statuses = [
            (await rotating.post("/webhooks/ingest", b"{}", signed(b"{}", secret)))[0]
            for secret in ("old", "new", "old new", "other")
        ]

    assert statuses == [202, 202, 401, 401]
    assert await db.events.count_documents({}) == 2


KEYED = [
    pytest.param(b'{"idempotency_key":"k","n":%d}', {}, id="payload"),
    pytest.param(b'{"n":%d}', {"Idempotency_Key": "k"}, id="header"),
]


@pytest.mark.parametrize(("body", "headers"), KEYED)
async def test_ingest_answers_a_repeated_key_with_200_and_the_first_id(client, db, body, headers):
    first = await client.ingest(body % 1, **headers)
    await db.events.update_one({}, {"$set": {"status": "DELIVERED"}})
    again = await client.ingest(body % 1, **headers)

    assert first == (202, {"id": first[1]["id"], "status": "RECEIVED", "duplicate": False})
    assert again == (200, {"id": first[1]["id"], "status": "DELIVERED", "duplicate": True})
    assert await db.events.count_documents({}) == 1


@pytest.mark.parametrize(("body", "headers"), KEYED)
async def test_ingest_refuses_a_key_with_another_payload(client, db, body, headers):
    await client.ingest(body % 1, **headers)
    before = await db.events.find().to_list(None)
    status, answer = await client.ingest(body % 2, **headers)

    assert (status, answer["error"]["code"]) == (409, "idempotency_conflict")
    assert answer["error"]["details"][0]["field"] == "idempotency_key"
    assert await db.events.find().to_list(None) == before


async def test_ingest_prefers_the_payloads_key_to_the_headers(client, db):
    await client.ingest(b'{"idempotency_key":"a"}', Idempotency_Key="b")
    status, _ = await client.ingest(b'{"n":2}', Idempotency_Key="b")

    assert status == 202
    assert await db.events.distinct("idempotency_key") == ["a", "b"]


async def test_ingest_uses_the_headers_key_where_the_payloads_is_null(client, db):
    body = b'{"idempotency_key":null}'
    first, _ = await client.ingest(body, Idempotency_Key="k")
    again, _ = await client.ingest(body, Idempotency_Key="k")

    assert (first, again) == (202, 200)
    assert await db.events.distinct("idempotency_key") == ["k"]


async def test_ingest_stores_equal_payloads_without_a_key_as_two_events(client, db):
    answers = [await client.ingest(b"{}") for _ in range(2)]

    assert [status for status, _ in answers] == [202, 202]
    assert await db.events.count_documents({}) == 2


async def test_ingest_stores_one_of_50_simultaneous_requests_with_one_key(client, db):
    body = b'{"idempotency_key":"k"}'
    answers = await asyncio.gather(*(client.ingest(body) for _ in range(50)))

    assert Counter(status for status, _ in answers) == {202: 1, 200: 49}
    assert {answer["id"] for _, answer in answers} == {derived_id("default", "k")}
    assert all(answer["duplicate"] == (status == 200) for status, answer in answers)
    assert await db.events.count_documents({}) == 1


async def test_ingest_stores_one_of_50_simultaneous_payloads_with_one_key(client, db):
    bodies = [b'{"idempotency_key":"k","n":%d}' % n for n in range(50)]
    answers = await asyncio.gather(*map(client.ingest, bodies))
    won = [body for body, (status, _) in zip(bodies, answers, strict=True) if status == 202]

    assert Counter(status for status, _ in answers) == {202: 1, 409: 49}
    assert [each["payload"] async for each in db.events.find()] == won


async def test_ingest_recognises_a_repeat_of_a_key_in_a_parallel_insert(client, db, monkeypatch):
    """The second insert finds the event of the first, which is stored but not answered yet."""
    store_insert = EventWriter.insert
    answered = asyncio.Event()
    sizes = []

    async def slow_at_first(self, events):
        sizes.append(len(events))
        first = len(sizes) == 1
        receipts = await store_insert(self, events)
        if first:
            await answered.wait()
        return receipts

    monkeypatch.setattr(EventWriter, "insert", slow_at_first)
    first = asyncio.create_task(client.ingest(b"{}", Idempotency_Key="k"))
    await eventually(lambda: db.events.count_documents({}), lambda stored: stored == 1)
    beside = [client.ingest(b"{}", Idempotency_Key="k")]
    beside += [client.ingest(b"{}") for _ in range(group_writer.MIN_PARALLEL_EVENTS - 1)]
    try:
        statuses = [status for status, _ in await asyncio.wait_for(asyncio.gather(*beside), 15)]
        assert not first.done()
    finally:
        answered.set()
    assert (await first)[0] == 202
    assert sorted(statuses) == [200] + [202] * (group_writer.MIN_PARALLEL_EVENTS - 1)
    assert sizes == [1, group_writer.MIN_PARALLEL_EVENTS]
    assert await db.events.count_documents({}) == group_writer.MIN_PARALLEL_EVENTS
