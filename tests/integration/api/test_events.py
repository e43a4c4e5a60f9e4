"""`POST /webhooks/search`: which events, in which order, and counts over all that match."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from tests.support import new_event
from wds.storage.event_documents import event_document

START = datetime(2026, 3, 1, 10, 59, 59, 998_000, tzinfo=UTC)
MS = timedelta(milliseconds=1)

# (status, event type, received at) of each event, numbered from 0. Some instants are equal.
PAST = [
    ("RECEIVED", "a", START),
    ("DELIVERED", "a", START),
    ("DELIVERED", "b", START + MS),
    ("FAILED_PERMANENTLY", "b", START + 2 * MS),
    ("DELIVERING", "c", START + 2 * MS),
    ("DELIVERED", None, START + 3 * MS),
    ("DELIVERED", "a", START + timedelta(hours=1)),
    ("RECEIVED", "$a", START + timedelta(hours=30)),
]


def document(number, status, event_type, received_at):
    event = new_event(b'{"n": %d}' % number, event_type=event_type)
    return {**event_document(event, received_at), "status": status}


def iso(instant):
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def search(client, **body):
    status, answer = await client.post("/webhooks/search", json.dumps(body).encode())
    assert status == 200
    return answer


async def numbers(client, **body):
    """Return the numbers of the events found, in order."""
    answer = await search(client, include_payload=True, **body)
    return [event["payload"]["n"] for event in answer["events"]]


@pytest.fixture
async def past(db, store):  # noqa: ARG001 - the store makes the indexes
    """Insert the events."""
    await db.events.insert_many(document(n, *event) for n, event in enumerate(PAST))


FILTERS = {
    "nothing": ({}, {0, 1, 2, 3, 4, 5, 6, 7}),
    "one status": ({"status": "DELIVERED"}, {1, 2, 5, 6}),
    "two statuses": ({"status": ["RECEIVED", "DELIVERING"]}, {0, 4, 7}),
    "one type": ({"event_type": "a"}, {0, 1, 6}),
    "two types": ({"event_type": ["b", "c"]}, {2, 3, 4}),
    "a type like an operator": ({"event_type": "$a"}, {7}),
    "a type of no event": ({"event_type": "A"}, set()),
    "from is inclusive": ({"from": iso(START + 2 * MS)}, {3, 4, 5, 6, 7}),
    "to is exclusive": ({"to": iso(START + 2 * MS)}, {0, 1, 2}),
    "from and to": ({"from": iso(START + MS), "to": iso(START + 3 * MS)}, {2, 3, 4}),
    "from equal to to": ({"from": iso(START), "to": iso(START)}, set()),
    "another time zone": ({"from": "2026-03-01T13:00:00.001+02:00"}, {5, 6, 7}),
    "no time zone is UTC": ({"from": "2026-03-01T11:00:00.001"}, {5, 6, 7}),
    "all at once": (
        {"status": "DELIVERED", "event_type": ["a", "b"], "from": iso(START + MS)},
        {2, 6},
    ),
}
MATCHES = pytest.mark.parametrize(("wanted", "expected"), FILTERS.values(), ids=FILTERS)


@MATCHES
@pytest.mark.usefixtures("past")
async def test_search_finds_exactly_what_a_filter_names(client, wanted, expected):
    found = await numbers(client, **wanted)

    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("page", [{}, {"limit": 1}, {"skip": 3}], ids=["whole", "one", "skipped"])
@MATCHES
@pytest.mark.usefixtures("past")
async def test_search_counts_all_matches_whatever_the_page(client, wanted, expected, page):
    answer = await search(client, **wanted, **page)
    matched = [PAST[number] for number in sorted(expected)]
    statuses = Counter({"RECEIVED": 0, "DELIVERING": 0, "DELIVERED": 0, "FAILED_PERMANENTLY": 0})
    statuses.update(status for status, _, _ in matched)
    hours = Counter(at.replace(minute=0, second=0, microsecond=0) for _, _, at in matched)

    assert answer["total"] == len(matched)
    assert answer["aggregations"] == {
        "by_status": dict(statuses),
        "by_event_type": Counter(event_type or "" for _, event_type, _ in matched),
        "histogram": [{"hour": iso(hour), "count": hours[hour]} for hour in sorted(hours)],
    }


@MATCHES
@pytest.mark.usefixtures("past")
async def test_search_total_is_the_same_without_aggregations(client, wanted, expected):
    answer = await search(client, aggregations=False, limit=2, **wanted)

    assert answer["total"] == len(expected)
    assert "aggregations" not in answer


@pytest.mark.usefixtures("past")
async def test_search_lists_types_commonest_first(client):
    answer = await search(client)
    counts = list(answer["aggregations"]["by_event_type"].values())

    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("sent", [b"", b"{}", b" { } "], ids=["no body", "empty", "odd"])
@pytest.mark.usefixtures("past")
async def test_search_without_filters_finds_everything(client, sent):
    status, answer = await client.post("/webhooks/search", sent)

    assert status == 200
    assert set(answer) == {"events", "total", "next_cursor", "aggregations"}
    assert (len(answer["events"]), answer["total"]) == (8, 8)


async def test_search_of_an_empty_store_finds_nothing(client, db):
    assert await db.events.count_documents({}) == 0
    assert await search(client) == {
        "events": [],
        "total": 0,
        "next_cursor": None,
        "aggregations": {
            "by_status": dict.fromkeys(
                ["RECEIVED", "DELIVERING", "DELIVERED", "FAILED_PERMANENTLY"], 0
            ),
            "by_event_type": {},
            "histogram": [],
        },
    }


@pytest.mark.usefixtures("past")
async def test_search_returns_newest_first_and_ties_by_id(client):
    events = (await search(client))["events"]
    order = [(event["received_at"], event["id"]) for event in events]

    assert len(order) == 8
    assert order == sorted(order, reverse=True)


@pytest.mark.parametrize(
    "wanted",
    [{}, {"status": ["RECEIVED", "DELIVERED"]}, {"event_type": ["a", "b"]}],
    ids=["nothing", "two statuses", "two types"],
)
async def test_search_orders_equal_instants_by_id_under_any_filter(client, db, past, wanted):  # noqa: ARG001
    # So many other values that MongoDB reads one index range for each and merges them.
    kinds = [("RECEIVED", "a"), ("DELIVERED", "b"), *[("FAILED_PERMANENTLY", "c")] * 8]
    await db.events.insert_many(document(n, *kinds[n % 10], START) for n in range(400))
    events = (await search(client, limit=500, **wanted))["events"]
    order = [(event["received_at"], event["id"]) for event in events]

    assert len(order) >= 80
    assert order == sorted(order, reverse=True)


@pytest.mark.usefixtures("past")
async def test_search_skip_and_limit_select_a_page(client):
    everything = await numbers(client)

    assert await numbers(client, skip=2, limit=3) == everything[2:5]
    assert await numbers(client, skip=6) == everything[6:]
    assert await numbers(client, skip=8) == []


async def test_search_page_holds_50_by_default_and_500_at_most(client, db):
    await db.events.insert_many(
        document(n, "DELIVERED", "a", START + n * MS) for n in reversed(range(501))
    )

    assert await numbers(client) == list(range(500, 450, -1))
    assert await numbers(client, limit=500) == list(range(500, 0, -1))


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 8, 9])
@pytest.mark.usefixtures("past")
async def test_search_cursor_reads_all_pages_while_events_arrive(client, db, limit):
    everything = await numbers(client)
    walked, cursor, pages = [], {}, 0
    while cursor is not None:
        answer = await search(client, limit=limit, include_payload=True, **cursor)
        walked += [event["payload"]["n"] for event in answer["events"]]
        pages += 1
        assert pages <= 8, "the walk does not end"
        cursor = answer["next_cursor"] and {"cursor": answer["next_cursor"]}
        newer = document(100 + pages, "RECEIVED", "a", START + timedelta(days=9, minutes=pages))
        await db.events.insert_one(newer)

    assert walked == everything
    assert pages == -(-8 // limit)


@pytest.mark.usefixtures("past")
async def test_search_cursor_keeps_the_filter_and_the_total(client):
    wanted = {"status": "DELIVERED", "include_payload": True, "limit": 3}
    first = await search(client, **wanted)
    rest = await search(client, **wanted, cursor=first["next_cursor"])
    found = [event["payload"]["n"] for event in first["events"] + rest["events"]]

    assert found == [6, 5, 2, 1]
    assert (first["total"], rest["total"], rest["next_cursor"]) == (4, 4, None)


@pytest.mark.parametrize("asked", [{}, {"include_payload": False}], ids=["not said", "false"])
@pytest.mark.usefixtures("past")
async def test_search_leaves_payloads_out_by_default(client, asked):
    answer = await search(client, **asked)

    assert len(answer["events"]) == 8
    assert not any("payload" in event for event in answer["events"])


async def test_search_returns_payloads_as_received(client):
    bodies = [b'{ "a":1,"a" : %s}' % (b"9" * 5000), rb'{"b":"\ud800"} ', '{"č":1.0e1}'.encode()]
    answers = [await client.ingest(body) for body in bodies]
    wanted = b'{"include_payload":true}'
    async with client.session.post(client.url + "/webhooks/search", data=wanted) as response:
        text = await response.read()

    assert [status for status, _ in answers] == [202] * 3
    assert all(b'"payload":' + body + b"}" in text for body in bodies)


@pytest.mark.usefixtures("past")
async def test_search_shows_an_event_as_its_own_route_does(client):
    [found] = (await search(client, event_type="c", include_payload=True))["events"]

    assert await client.get(f"/webhooks/events/{found['id']}") == (200, found)


async def test_event_shows_attempt_and_lease_without_the_token(client, db):
    attempt = {
        "attempt_number": 1,
        "timestamp": START,
        "status_code": 503,
        "success": False,
        "outcome": "failure",
        "duration_ms": 7,
        "error": "answered 503",
        "response": "busy",
    }
    lease = {"token": "secret", "owner": "d-1", "since": START + MS}
    event = document(0, "DELIVERING", "a", START)
    await db.events.insert_one({**event, "attempts": [attempt], "lease": lease})
    [found] = (await search(client))["events"]

    assert found["attempts"] == [{**attempt, "timestamp": iso(START)}]
    assert found["lease"] == {"owner": "d-1", "since": iso(START + MS)}


async def test_search_answers_concurrent_requests_separately(client, past):  # noqa: ARG001
    wanted = [wanted for wanted, _ in FILTERS.values()]
    found = await asyncio.gather(*(numbers(client, **each) for each in wanted))

    assert [set(each) for each in found] == [expected for _, expected in FILTERS.values()]


async def test_search_page_with_payloads_is_bounded_in_bytes(client, store):
    big = b'{"x":"' + b"y" * 3_000_000 + b'"}'
    await store.writer.insert([new_event(big, key=f"k{number}") for number in range(7)])
    query, ids = {"include_payload": True, "limit": 500}, []
    while True:
        status, page = await client.post("/webhooks/search", json.dumps(query).encode())
        assert status == 200
        assert 1 <= len(page["events"]) <= 3
        assert all(len(event["payload"]["x"]) == 3_000_000 for event in page["events"])
        ids += [event["id"] for event in page["events"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert len(ids) == len(set(ids)) == 7
