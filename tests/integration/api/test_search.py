"""Every filter and order of a search against the same choice in Python; and exports."""

from __future__ import annotations

import asyncio
import json
import random
import tracemalloc
from collections import Counter
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
from msgspec.structs import replace

from tests.support import make_settings, new_event
from wds.domain.errors import StoreUnavailableError
from wds.domain.event_filter import SORTS
from wds.ingest import create_app
from wds.storage.event_documents import event_document
from wds.storage.mongo import SEARCH_LIMIT_MS, SOCKET_TIMEOUT_S
from wds.web.server import listening

START = datetime(2026, 3, 1, 10, tzinfo=UTC)
STATUSES = ["RECEIVED", "DELIVERING", "DELIVERED", "FAILED_PERMANENTLY"]
CODES = [None, 0, 200, 404, 500, 503]


@pytest.fixture
async def past(db, store):  # noqa: ARG001 - the store makes the indexes
    """Insert 400 events of every kind, many at the same instant."""
    rng = random.Random(11)
    documents = []
    for number in range(400):
        event = new_event(
            b'{"n": %d}' % number,
            key=f"key-{number}" if number % 2 else None,
            event_type=rng.choice(["a", "b", None]),
            destination=rng.choice(["one", "two"]),
        )
        document = event_document(event, START + timedelta(minutes=rng.randrange(120)))
        document["source"] = rng.choice(["shop", "bank"])
        document["status"] = rng.choice(STATUSES)
        document["attempt_count"] = rng.randrange(6)
        code = rng.choice(CODES)
        if code is not None:
            document["last_status_code"] = code
        documents.append(document)
    await db.events.insert_many(documents)
    return documents


@pytest.fixture
def small_pages(monkeypatch):
    """Read an export in pages that do not divide it."""
    monkeypatch.setattr("wds.storage.event_reader.SCAN_PAGE", 37)


FILTERS = {
    "source": ({"source": "shop"}, lambda e: e["source"] == "shop"),
    "destination": ({"destination": ["one", "x"]}, lambda e: e["destination"] == "one"),
    "attempts": ({"min_attempts": 4}, lambda e: e["attempt_count"] >= 4),
    "no attempts": ({"min_attempts": 0}, lambda e: e["attempt_count"] >= 0),
    "code": ({"last_status_code": 503}, lambda e: e.get("last_status_code") == 503),
    "codes": ({"last_status_code": [0, 404]}, lambda e: e.get("last_status_code") in (0, 404)),
    "key": ({"idempotency_key": "key-7"}, lambda e: e.get("idempotency_key") == "key-7"),
    "no such key": ({"idempotency_key": "key-8"}, lambda _: False),
    "prefix": ({"id_prefix": "0"}, lambda e: e["_id"].startswith("0")),
    "no such prefix": ({"id_prefix": "0" * 32}, lambda _: False),
    "all at once": (
        {
            "source": "shop",
            "destination": "one",
            "min_attempts": 1,
            "last_status_code": [500, 503],
            "status": ["DELIVERING", "FAILED_PERMANENTLY"],
            "event_type": ["a", "b"],
            "from": "2026-03-01T10:30:00Z",
        },
        lambda e: (
            e["source"] == "shop"
            and e["destination"] == "one"
            and e["attempt_count"] >= 1
            and e.get("last_status_code") in (500, 503)
            and e["status"] in ("DELIVERING", "FAILED_PERMANENTLY")
            and e["event_type"] in ("a", "b")
            and e["received_at"] >= START + timedelta(minutes=30)
        ),
    ),
}
EACH_FILTER = pytest.mark.parametrize(("wanted", "fits"), FILTERS.values(), ids=FILTERS)
EACH_SORT = pytest.mark.parametrize("sort", SORTS)


def in_order(documents, sort):
    """Return the ids in the order that `sort` names, by Python's own sorting."""
    fields = [name for name, _ in SORTS[sort]]
    ordered = sorted(
        documents, key=lambda e: [e[name] for name in fields], reverse=sort.startswith("-")
    )
    return [each["_id"] for each in ordered]


async def search(client, **body):
    status, answer = await client.post("/webhooks/search", json.dumps(body).encode())
    assert status == 200, answer
    return answer


async def export(client, **body):
    url = f"{client.url}/webhooks/export"
    async with client.session.post(url, json=body) as response:
        assert (response.status, response.content_type) == (200, "application/x-ndjson")
        return [json.loads(line) async for line in response.content]


@EACH_SORT
@EACH_FILTER
async def test_search_pages_hold_exactly_the_matches_in_order(client, past, wanted, fits, sort):
    expected = in_order(filter(fits, past), sort)
    found, cursor = [], None
    while True:
        more = {} if cursor is None else {"cursor": cursor}
        page = await search(client, **wanted, **more, sort=sort, limit=37, aggregations=False)
        found += [event["id"] for event in page["events"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break

    assert found == expected
    skipped = await search(client, **wanted, sort=sort, limit=500, skip=5)
    assert [event["id"] for event in skipped["events"]] == expected[5:]


@EACH_FILTER
async def test_search_counts_exactly_the_matches(client, past, wanted, fits):
    fitting = list(filter(fits, past))
    answer = await search(client, **wanted, limit=1)
    statuses = Counter(dict.fromkeys(STATUSES, 0)) | Counter(e["status"] for e in fitting)
    hours = Counter(e["received_at"].replace(minute=0) for e in fitting)

    assert answer["total"] == len(fitting)
    counted = answer["aggregations"]
    assert counted["by_status"] == {name: statuses[name] for name in STATUSES}
    assert counted["by_event_type"] == Counter(e["event_type"] or "" for e in fitting)
    assert [bar["count"] for bar in counted["histogram"]] == [hours[h] for h in sorted(hours)]


@pytest.mark.parametrize("include_payload", [False, True])
async def test_search_leaves_payloads_out_by_default(client, past, include_payload):
    assert past
    pages = [
        (await search(client, include_payload=include_payload, sort=sort, limit=20))["events"]
        for sort in SORTS
    ]
    assert all(("payload" in event) is include_payload for page in pages for event in page)


@EACH_SORT
async def test_search_cursor_repeats_and_omits_nothing_while_events_arrive(
    client, past, store, sort
):
    found, cursor = [], None
    while True:
        more = {} if cursor is None else {"cursor": cursor}
        page = await search(client, **more, sort=sort, limit=50, aggregations=False)
        found += [event["id"] for event in page["events"]]
        cursor = page["next_cursor"]
        if cursor is None or len(found) > 1000:
            break
        await store.writer.insert([new_event() for _ in range(7)])
    old = [event_id for event_id in found if event_id in {each["_id"] for each in past}]

    assert old == in_order(past, sort)
    assert len(found) == len(set(found))


# -- export -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sort", ["-received_at", "received_at"])
@EACH_FILTER
@pytest.mark.usefixtures("small_pages")
async def test_export_holds_exactly_the_matches_in_order(client, past, wanted, fits, sort):
    lines = await export(client, **wanted, sort=sort)

    assert [each["id"] for each in lines] == in_order(filter(fits, past), sort)
    assert not [each for each in lines if "payload" in each]


async def test_export_can_include_payloads(client, past):
    lines = await export(client, include_payload=True)
    numbers = {each["_id"]: json.loads(each["payload"]) for each in past}

    assert {each["id"]: each["payload"] for each in lines} == numbers


async def test_export_without_matches_is_empty(client):
    assert await export(client) == []


async def test_export_leaves_out_events_that_arrive_meanwhile(client, past, store, monkeypatch):
    monkeypatch.setattr("wds.storage.event_reader.SCAN_PAGE", 100)
    page = store.reader.page

    async def page_with_arrivals(*args, **kwargs):
        await asyncio.sleep(0.002)
        await store.writer.insert([new_event()])
        return await page(*args, **kwargs)

    monkeypatch.setattr(store.reader, "page", page_with_arrivals)
    assert len(await export(client, sort="received_at")) == len(past)


async def test_export_that_fails_midway_is_recognisably_incomplete(
    client, past, store, monkeypatch
):
    monkeypatch.setattr("wds.storage.event_reader.SCAN_PAGE", 100)
    monkeypatch.setattr("wds.storage.event_reader.EXPORT_BUDGET_S", 0)
    page, pages = store.reader.page, []

    async def page_or_failure(*args, **kwargs):
        pages.append(kwargs["after"])
        if len(pages) > 2:
            raise StoreUnavailableError
        return await page(*args, **kwargs)

    monkeypatch.setattr(store.reader, "page", page_or_failure)
    with pytest.raises(aiohttp.ClientError):
        await export(client)
    assert len(pages) == 3 and len(past) > 200


async def test_export_that_cannot_begin_is_an_error(client, store, monkeypatch):
    monkeypatch.setattr("wds.storage.event_reader.EXPORT_BUDGET_S", 0)

    async def failure(*_args, **_kwargs):
        raise StoreUnavailableError

    monkeypatch.setattr(store.reader, "page", failure)
    status, answer = await client.post("/webhooks/export", b"{}")
    assert (status, answer["error"]["code"]) == (503, "store_unavailable")


async def test_export_uses_constant_memory(engines, store, db, monkeypatch):
    """100 MiB of payloads go through; the service holds a page of them at most, 1 MiB here."""
    monkeypatch.setattr("wds.storage.event_reader.PAGE_BYTES", 1024 * 1024)
    payload = b'{"text": "' + b"x" * 256 * 1024 + b'"}'
    for _ in range(8):
        documents = [event_document(new_event(payload), START) for _ in range(50)]
        await db.events.insert_many(documents)
    app = create_app(make_settings(engines), store)
    async with listening(app, "127.0.0.1", 0) as port, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/webhooks/export"
        tracemalloc.start()
        try:
            size = 0
            async with session.post(url, json={"include_payload": True}) as response:
                async for chunk in response.content.iter_chunked(1 << 16):
                    size += len(chunk)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert size > 100 * 1024 * 1024
    assert peak < 25 * 1024 * 1024


async def test_export_ends_when_its_client_leaves(client, past, store, monkeypatch):
    assert past
    monkeypatch.setattr("wds.storage.event_reader.SCAN_PAGE", 1)
    ended = asyncio.Event()
    original = store.reader.export

    async def watched(*args, **kwargs):
        try:
            async for page in original(*args, **kwargs):
                while True:  # endless unless it is ended
                    yield page
                    await asyncio.sleep(0.01)
        finally:
            ended.set()

    monkeypatch.setattr(store.reader, "export", watched)
    async with client.session.post(f"{client.url}/webhooks/export", json={}) as response:
        await response.content.readline()
        response.close()
    async with asyncio.timeout(15):
        await ended.wait()


async def test_export_writes_an_event_a_line_whatever_its_payload(client, store):
    broken = new_event(b'{\r\n  "text": "a\\nb",\n  "n": 1\n}\n')
    form = replace(new_event(b"a=%0A\n"), content_type="application/x-www-form-urlencoded")
    await store.writer.insert([broken, form])
    events = await export(client, include_payload=True)

    assert {event["id"]: event["payload"] for event in events} == {
        broken.id: {"text": "a\nb", "n": 1},
        form.id: "a=%0A\n",
    }


@pytest.fixture
async def no_time(store):
    """Let MongoDB end every operation that has a time limit as if it had exceeded it."""
    admin = store._mongo._client.admin
    switch = {"configureFailPoint": "maxTimeAlwaysTimeOut"}
    await admin.command({**switch, "mode": "alwaysOn"})
    try:
        yield
    finally:
        await admin.command({**switch, "mode": "off"})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("search", {}),
        ("search", {"sort": "-attempt_count"}),
        ("export", {}),
        ("replay", {"dry_run": True, "status": "DELIVERED"}),
        ("replay", {"dry_run": True, "min_attempts": 1}),
    ],
)
@pytest.mark.usefixtures("past", "no_time")
async def test_search_that_takes_too_long_says_what_to_do(client, path, body):
    status, answer = await client.post(f"/webhooks/{path}", json.dumps(body).encode())
    assert (status, answer["error"]["code"]) == (422, "search_too_slow")
    assert "range of time" in answer["error"]["message"]


@pytest.mark.usefixtures("past", "no_time")
async def test_console_page_that_takes_too_long_is_not_retried(client):
    async with client.session.get(f"{client.url}/console") as response:
        text = await response.text()
    assert response.status == 422 and "range of time" in text
    assert "data-retry" not in text


def test_search_limit_ends_before_the_driver_times_out():
    """Otherwise the driver would repeat the search, and it would take twice as long."""
    assert SEARCH_LIMIT_MS / 1000 <= SOCKET_TIMEOUT_S - 1


async def test_scan_page_holds_bounded_bytes_of_payload(store, past, monkeypatch):
    size = len(past[0]["payload"])
    monkeypatch.setattr("wds.storage.event_reader.PAGE_BYTES", 10 * size)
    pages = [page async for page in store.reader.scan(payloads=True)]
    assert [each["_id"] for page in pages for each in page] == sorted(each["_id"] for each in past)
    assert max(len(page) for page in pages) <= 10

    [whole] = [page async for page in store.reader.scan(payloads=False)]
    assert len(whole) == len(past)
