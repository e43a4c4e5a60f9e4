"""The list of events: filters, pages, totals, histogram, replicas, and finding an event."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from datetime import datetime, timedelta
from urllib.parse import quote

import pytest

from tests import history
from tests.integration.console.pages import event_ids, serve_console
from tests.support import new_event
from wds.console.event_query import datetime_local
from wds.domain.errors import StoreUnavailableError
from wds.storage.rollups import Rollups
from wds.storage.store import Store


async def test_totals_and_histogram_count_every_event_once(get_page, stored_events):
    page = await get_page("/console?range=all")
    counts = Counter(each["status"] for each in stored_events)
    names = {"RECEIVED": "Received", "DELIVERING": "Delivering", "DELIVERED": "Delivered"}
    for status, name in {**names, "FAILED_PERMANENTLY": "Failed"}.items():
        assert f"{name} {counts[status]}" in page.text
    assert f"{len(stored_events)} events" in page.text
    bars = [link["aria-label"] for link in page.all("a") if "aria-label" in link]
    assert len(bars) > 10
    assert sum(
        int(number) for bar in bars for number in re.findall(r"(\d+) [a-z]+(?:,|$)", bar)
    ) == len(stored_events)


def bars_of(page):
    """Return start, end, number of events and URL of each bar, from its label."""
    label = re.compile(r"(\S+ \S+) to (\S+ \S+): (.*)")
    bars = []
    for link in page.all("a"):
        if match := label.fullmatch(link.get("aria-label", "")):
            start, end = (datetime.fromisoformat(f"{each}+00:00") for each in match.groups()[:2])
            number = sum(int(each) for each in re.findall(r"(\d+) [a-z]", match[3]))
            bars.append((start, end, number, link["href"]))
    return bars


@pytest.mark.parametrize("query", ["", "range=24h", "range=all", "from={}&to={}", "from={}"])
async def test_histogram_bars_count_the_events_that_they_link_to(get_page, db, store, query):
    now = await store.now()
    day_ago = now - timedelta(days=1)
    start = day_ago.replace(hour=3, minute=20, second=0, microsecond=1000)
    end = start + timedelta(hours=9, minutes=20)
    offsets = [timedelta(seconds=each) for each in (-90, -1, 1, 90)]
    instants = [edge + offset for edge in (day_ago, start, end) for offset in offsets]
    attempt = history.attempt(1, now, random.Random(1), succeeds=True)
    await db.events.insert_many(
        history.made(new_event(b"{}"), at, [attempt], "DELIVERED") for at in [*instants, now]
    )
    page = await get_page("/console?" + query.format(*map(datetime_local, (start, end))))
    bars = bars_of(page)
    shown = set(event_ids(page))
    assert sum(number for _, _, number, _ in bars) == len(shown)
    for bar_start, bar_end, number, url in bars:
        target = await get_page(url)
        assert (len(event_ids(target)), set(event_ids(target)) <= shown) == (number, True)
        assert f"from={quote(datetime_local(bar_start))}&to={quote(datetime_local(bar_end))}" in url
    first, last = bars[0][0], bars[-1][1]
    if query.startswith("from"):
        assert first == start
        assert last == end if "to=" in query else last > now
    else:
        assert first == min(instants) if query == "range=all" else first >= day_ago
        assert now < last <= await store.now() + timedelta(milliseconds=1)


async def test_event_list_shows_due_events_and_replicas(get_page, stored_events):
    page = await get_page("/console")
    assert stored_events
    assert re.search(r"Due now [1-9] oldest due for \d+ s", page.text)
    assert "Replicas 3 1 silent" in page.text
    assert re.search(r"dispatcher worker-2-7003-5fc3a1 3 min ago Silent", page.text)
    assert re.search(r"ingest web-1-7000-5fc0a1 \d s ago Alive", page.text)


@pytest.mark.parametrize(
    ("query", "matches"),
    [
        ("status=FAILED_PERMANENTLY", lambda each: each["status"] == "FAILED_PERMANENTLY"),
        ("status=RECEIVED&status=DELIVERING", lambda each: "next_attempt_at" in each),
        ("event_type=push", lambda each: each["event_type"] == "push"),
        ("min_attempts=3", lambda each: each["attempt_count"] >= 3),
        ("last_status_code=503", lambda each: each.get("last_status_code") == 503),
        (
            "event_type=push&min_attempts=2",
            lambda each: each["event_type"] == "push" and each["attempt_count"] >= 2,
        ),
        ("source=nobody", lambda _: False),
    ],
)
async def test_event_list_shows_exactly_the_events_that_match(
    get_page, stored_events, query, matches
):
    page = await get_page(f"/console?range=all&limit=200&{query}")
    expected = [each["_id"] for each in stored_events if matches(each)]
    assert sorted(event_ids(page)) == sorted(expected)
    assert f"{len(expected)} event" in page.text


async def test_event_list_removes_empty_parameters_from_its_url(get_page):
    answer = await get_page("/console?status=DELIVERED&event_type=&from=&to=&sort=&limit=25")
    assert answer.status == 302
    assert answer.headers["Location"] == "/console?status=DELIVERED&limit=25"


async def test_event_list_marks_the_field_of_an_invalid_filter(get_page, stored_events):
    page = await get_page("/console?min_attempts=many&event_type=push")
    assert stored_events
    assert page.status == 422
    [field] = page.all("input", name="min_attempts")
    assert (field["aria-invalid"], field["value"]) == ("true", "many")
    assert page.all("p", id=field["aria-describedby"])
    assert page.all("input", name="event_type")[0]["value"] == "push"
    assert "Not a valid integer" in page.text
    assert event_ids(page) == []


@pytest.mark.parametrize("sort", ["-received_at", "received_at", "-attempt_count", "attempt_count"])
async def test_event_list_pages_show_every_event_once_in_both_directions(
    get_page, stored_events, sort
):
    page = await get_page(f"/console?range=all&limit=25&sort={sort}")
    pages = [event_ids(page)]
    while next_links := page.all("a", rel="next"):
        page = await get_page(next_links[0]["href"])
        pages.append(event_ids(page))
    assert sorted(each for ids in pages for each in ids) == sorted(
        each["_id"] for each in stored_events
    )
    assert len(pages) == 6
    for expected in pages[-2:0:-1]:
        page = await get_page(page.all("a", rel="prev")[0]["href"])
        assert event_ids(page) == expected
    first = await get_page(page.all("a", rel="prev")[0]["href"])
    if first.status == 302:
        first = await get_page(first.headers["Location"])
    assert event_ids(first) == pages[0]
    assert not first.all("a", rel="prev")


async def test_event_list_without_events_shows_how_to_send_one(get_page):
    assert "python -m wds send --count 5" in (await get_page("/console?range=all")).text


@pytest.mark.parametrize(
    "query",
    [
        "from=0001-01-01",
        "to=0001-01-01",
        "from=9999-12-31T23:59:59.999",
        "to=9999-12-31T23:59:59.999",
        "from=0001-01-01&to=9999-12-31T23:59:59.999",
        "from=0001-01-01&to=0001-01-02&source=x",
    ],
)
@pytest.mark.usefixtures("stored_events")
async def test_event_list_accepts_ranges_up_to_the_ends_of_time(get_page, query):
    assert (await get_page(f"/console?{query}")).status == 200


async def test_event_list_without_events_in_range_links_to_all_time(get_page, db, store):
    assert store
    await db.events.insert_many(history.past(history.utc_now() - timedelta(days=9), 3))
    page = await get_page("/console")
    assert "Search all time" in page.text
    assert len(event_ids(await get_page("/console?range=all"))) == 3


@pytest.mark.usefixtures("stored_events")
async def test_filter_panel_is_open_only_without_results(get_page):
    """An open panel pushes the first event below the fold. Active filters are listed above it."""
    found = await get_page("/console?range=all&status=FAILED_PERMANENTLY")
    [panel] = found.all("details", id="filters")
    assert "open" not in panel
    assert "status FAILED_PERMANENTLY" in found.text
    assert found.links("/console/replay") and found.links("/console/cancel")
    none = await get_page("/console?range=all&source=nobody")
    [panel] = none.all("details", id="filters")
    assert "open" in panel
    assert "No matching events were received in this range." in none.text
    assert not none.links("/console/replay") + none.links("/console/cancel")
    [panel] = (await get_page("/console?min_attempts=x")).all("details", id="filters")
    assert "open" in panel


async def test_event_list_is_shown_when_counting_takes_too_long(
    get_page, stored_events, monkeypatch
):
    async def slow(*_, **__):
        raise StoreUnavailableError

    monkeypatch.setattr(Rollups, "status_counts", slow)
    page = await get_page("/console?range=all")
    assert page.status == 200
    assert "Counting took too long" in page.text
    assert len(event_ids(page)) == min(len(stored_events), 50)


async def test_event_counts_run_one_query_for_concurrent_pages(
    get_page, stored_events, monkeypatch
):
    queries = []
    status_counts = Rollups.status_counts

    async def counting(self, *arguments, **more):
        queries.append(arguments)
        return await status_counts(self, *arguments, **more)

    monkeypatch.setattr(Rollups, "status_counts", counting)
    monkeypatch.setattr("wds.console.cache.MIN_KEEP_S", 60.0)
    pages = await asyncio.gather(
        *(get_page("/console") for _ in range(8)), get_page("/console?status=DELIVERED")
    )
    assert stored_events
    assert [page.status for page in pages] == [200] * 9
    assert len(queries) == 1


async def test_event_list_without_mongodb_answers_503_and_retries(settings):
    unreachable = Store("mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=200&replicaSet=x", "none")
    try:
        async with serve_console(settings, unreachable) as get_page:
            page = await get_page("/console")
    finally:
        await unreachable.close()
    assert (page.status, page.headers["Retry-After"]) == (503, "5")
    assert "MongoDB does not answer" in page.text
    assert page.all("meta", http_equiv="refresh", content="5")
    assert page.all("section", data_retry="5000")


@pytest.mark.parametrize(
    ("term", "target"),
    [
        ("{id}", "/console/events/{id}"),
        ("{ID}", "/console/events/{id}"),
        ("0" * 32, "/console?id_prefix=" + "0" * 32),
        ("01a2b3", "/console?id_prefix=01a2b3"),
        ("order-17", "/console?idempotency_key=order-17"),
        ("a b&c", "/console?idempotency_key=a+b%26c"),
    ],
)
async def test_find_redirects_by_id_prefix_or_key(get_page, stored_events, term, target):
    known = stored_events[0]["_id"]
    answer = await get_page(f"/console/find?q={quote(term.format(id=known, ID=known.upper()))}")
    assert answer.headers["Location"] == target.format(id=known)
