"""The console over HTTP: what is on its pages, and that hostile text on them stays text."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from html.parser import HTMLParser
from urllib.parse import quote

import aiohttp
import pytest
from markupsafe import Markup

from tests import history, hostile
from tests.support import eventually, new_event
from wds.console import templating
from wds.console.event_query import stamp
from wds.domain.errors import StoreUnavailableError
from wds.ingest import create_app
from wds.storage.rollups import Rollups
from wds.storage.store import Store
from wds.web.server import listening

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
VOID = {"meta", "link", "input", "path", "rect", "circle", "line", "img"}


class Page(HTMLParser):
    """A page as a browser would read it: elements with their attributes, and text."""

    def __init__(self, status, headers, html):
        super().__init__(convert_charrefs=True)
        self.status, self.headers, self.html = status, headers, html
        self.elements, self.text = [], ""
        self.feed(html)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.text += " " if tag in {"td", "dd", "dt", "li", "p"} else ""

    def handle_data(self, data):
        self.text += data

    def all(self, tag, **having):
        """Return the attributes of each such element; an attribute without a value has None."""
        wanted = {key.rstrip("_").replace("_", "-"): having[key] for key in having}
        return [
            attrs
            for name, attrs in self.elements
            if name == tag and wanted.items() <= attrs.items()
        ]

    def links(self, beginning):
        return [a["href"] for a in self.all("a") if a.get("href", "").startswith(beginning)]


@asynccontextmanager
async def looking(settings, store):
    """Serve the console, and give a function that asks it for a page."""
    async with (
        listening(create_app(settings, store), "127.0.0.1", 0) as port,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
    ):

        async def ask(path, *, data=None, **headers):
            method = "GET" if data is None else "POST"
            url = f"http://127.0.0.1:{port}{path}"
            async with session.request(
                method, url, data=data, headers=headers, allow_redirects=False
            ) as answer:
                body = await answer.read()
                return Page(answer.status, answer.headers, body.decode("utf-8", "replace"))

        yield ask


@pytest.fixture
async def look(settings, store):
    """Give the pages of a service without a token."""
    async with looking(settings, store) as ask:
        yield ask


@pytest.fixture
async def past(db, store):  # noqa: ARG001 - the store makes the indexes
    now = history.utc_now()
    documents = [*history.past(now, 120), *history.waiting(now, random.Random(1))]
    await db.events.insert_many(documents)
    await db.fleet.insert_one(history.replicas(now))
    return documents


def ids(page):
    return [href.rpartition("/")[2] for href in page.links("/console/events/")]


async def form(look, path):
    """Return the hidden fields of the last form of a page."""
    page = await look(path)
    assert page.status == 200
    return {each["name"]: each["value"] for each in page.all("input", type="hidden")}


# -- every page ------------------------------------------------------------------------------


async def test_the_root_leads_to_the_console(look):
    answer = await look("/")
    assert (answer.status, answer.headers["Location"]) == (302, "/console")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/console", 200),
        ("/console?status=LOST", 422),
        ("/console/events/{id}", 200),
        ("/console/events/{id}/replay", 200),
        ("/console/events/{id}/cancel", 200),
        ("/console/replay?range=all", 200),
        ("/console/cancel?range=all", 200),
        ("/console/actions", 200),
        ("/console/events/unknown", 404),
        ("/console/actions/unknown", 404),
        ("/console/no/such/page", 404),
        ("/console/login", 303),
        ("/console/find?q=nothing", 302),
        ("/", 302),
        ("/docs", 200),
        ("/docs?url=https://evil.example/x.json", 302),
        ("/docs/static/none.js", 404),
    ],
)
async def test_every_answer_is_locked_down(look, past, path, status):
    page = await look(path.replace("{id}", past[0]["_id"]))
    assert page.status == status
    policy = DOCS_POLICY if path == "/docs" else POLICY
    assert page.headers["Content-Security-Policy"] == policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["X-Frame-Options"] == "DENY"
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["Referrer-Policy"] == "same-origin"
    assert not page.all("style")
    for attrs in page.all("script"):
        assert attrs["src"].startswith(("/console/static/", "/docs/static/"))
    for _, attrs in page.elements:
        assert not [name for name in attrs if name == "style" or name.startswith("on")]
    if status in {200, 404, 422}:
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert page.all("html", lang="en")
        assert len(page.all("h1")) == 1


async def test_static_files_are_kept_for_good_and_named_by_what_is_in_them(look):
    page = await look("/console")
    addresses = [page.all("script")[0]["src"], *(link["href"] for link in page.all("link"))]
    kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert len(addresses) == 3
    for address in addresses:
        file = await look(address)
        assert file.status == 200
        assert file.headers["Content-Type"].startswith(
            kinds[address.partition("?")[0].rpartition(".")[2]]
        )
        assert "immutable" in file.headers["Cache-Control"]
        assert file.headers["X-Content-Type-Options"] == "nosniff"
        assert re.search(r"\?v=[0-9a-f]{12}$", address)


@pytest.mark.parametrize("name", ["swagger-ui.css", "swagger-ui-bundle.js", "page.css"])
async def test_a_file_of_swagger_ui_is_nothing_else_and_asked_for_again(look, name):
    file = await look(f"/docs/static/{name}")
    assert re.fullmatch("text/css|(text|application)/javascript", file.headers["Content-Type"])
    assert file.headers["X-Content-Type-Options"] == "nosniff"
    assert file.headers["X-Frame-Options"] == "DENY"
    assert file.headers["Referrer-Policy"] == "same-origin"
    assert file.headers["Cache-Control"] == "private, no-cache"
    again = await look(f"/docs/static/{name}", **{"If-None-Match": file.headers["ETag"]})
    assert again.status == 304


@pytest.mark.parametrize(
    "name", ["none.css", "..%2fconsole.py", "%2e%2e/ingest.py", "oauth2-redirect.html"]
)
async def test_no_other_file_is_served(look, name):
    for where in ("/console", "/docs"):
        assert (await look(f"{where}/static/{name}")).status == 404


# -- hostile text ----------------------------------------------------------------------------


def hostile_event(text, now):
    """Return an event whose every text is `text`, where it could be so."""
    attempt = {
        **history.attempt(1, now, random.Random(1), succeeds=False),
        "error": text,
        "response": text,
    }
    entry = {
        "action": "replay",
        "at": now,
        "by": text,
        "remote": text,
        "reason": text,
        "request_id": text,
        "status": "RECEIVED",
        "attempt_count": 0,
    }
    event = new_event(
        json.dumps({text: [text]}).encode(),
        event_type=text,
        key=text,
        headers={text.replace("\0", ""): text},
    )
    return history.made(
        event,
        now,
        [attempt],
        "FAILED_PERMANENTLY",
        source=text,
        destination=text,
        content_type=text,
        history=[entry],
    )


def shape(page):
    """Return a page's elements and attribute names: what text must not change."""
    return [(tag, sorted(attrs)) for tag, attrs in page.elements]


@pytest.mark.parametrize("text", hostile.TEXTS, ids=range(len(hostile.TEXTS)))
async def test_hostile_text_changes_no_element_of_any_page(look, db, store, text):
    assert store
    now = history.utc_now()
    pages = {}
    for which in ("harmless text", text):
        await db.events.delete_many({})
        await db.bulk_actions.delete_many({})
        event = hostile_event(which, now)
        await db.events.insert_one(event)
        await db.fleet.replace_one({"_id": "fleet"}, fleet(which, now), upsert=True)
        await db.bulk_actions.insert_one(bulk(which, now))
        pages[which] = [
            await look("/console?range=all"),
            await look(f"/console?event_type={quote(which)}&range=all&source={quote(which)}"),
            await look(f"/console?status={quote(which)}&colour={quote(which)}"),
            await look(f"/console/events/{event['_id']}"),
            await look(f"/console/events/{event['_id']}/replay"),
            await look(f"/console/replay?range=all&event_type={quote(which)}"),
            await look("/console/actions"),
            await look(f"/console/actions/{quote(which, safe='')}"),
        ]
    harmless, harmful = pages["harmless text"], pages[text]
    for one, other in zip(harmless, harmful, strict=True):
        printable = text.isprintable()
        # What is no label is refused as a filter, on a page of another shape.
        assert one.status == other.status or not printable
        if one.status == other.status:
            assert strip(shape(one)) == strip(shape(other))
    assert harmful[3].status == 200


def strip(elements):
    """Leave out what differs by length or by parts of a text, not by what the text can do.

    And the histogram's labels, whose number depends on the instant.
    """
    label = ("text", ["text-anchor", "x", "y"])
    return [each for each in elements if each[0] != "span" and each != label]


def fleet(text, now):
    return {
        "_id": "fleet",
        "retired": {},
        "replicas": [{"owner": text, "role": text, "totals": {}, "seen_at": now}],
    }


def bulk(text, now):
    return {
        "_id": text,
        "action": "replay",
        "by": text,
        "remote": text,
        "reason": text,
        "filters": json.dumps({"event_type": [text]}),
        "limit": None,
        "per_second": None,
        "matched": 1,
        "examined": 1,
        "changed": 1,
        "state": "failed",
        "failure": text,
        "started_at": now,
        "finished_at": now,
    }


async def test_control_a_template_that_trusts_text_is_found(settings, db, store, monkeypatch):
    monkeypatch.setitem(templating._FILTERS, "visible", Markup)
    async with looking(settings, store) as look:
        with pytest.raises(AssertionError):
            await test_hostile_text_changes_no_element_of_any_page(
                look, db, store, hostile.TEXTS[0]
            )


async def test_a_payload_is_a_file_to_a_browser_whatever_is_in_it(look, store):
    payload = b'{"a":"<script>alert(1)</script>\xc3\xa9", "n": 1e400}'
    event = new_event(payload, key="k")
    await store.writer.insert([event])
    file = await look(f"/console/events/{event.id}/payload")
    assert file.html.encode() == payload
    assert file.headers["Content-Type"] == "application/octet-stream"
    assert file.headers["Content-Disposition"] == f'attachment; filename="{event.id}.json"'
    assert file.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert file.headers["X-Content-Type-Options"] == "nosniff"


# -- the events ------------------------------------------------------------------------------


async def test_totals_and_histogram_say_what_the_search_says(look, past):
    page = await look("/console?range=all")
    counts = Counter(each["status"] for each in past)
    names = {"RECEIVED": "Received", "DELIVERING": "Delivering", "DELIVERED": "Delivered"}
    for status, name in {**names, "FAILED_PERMANENTLY": "Failed"}.items():
        assert f"{name} {counts[status]}" in page.text
    assert f"{len(past)} events" in page.text
    bars = [link["aria-label"] for link in page.all("a") if "aria-label" in link]
    assert len(bars) > 10
    assert sum(
        int(number) for bar in bars for number in re.findall(r"(\d+) [a-z]+(?:,|$)", bar)
    ) == len(past)


def bars_of(page):
    """Return from when, to when, how many events and the address of each bar, as it says."""
    bar = re.compile(r"(\S+ \S+) to (\S+ \S+): (.*)")
    found = []
    for link in page.all("a"):
        if said := bar.fullmatch(link.get("aria-label", "")):
            start, end = (datetime.fromisoformat(f"{each}+00:00") for each in said.groups()[:2])
            number = sum(int(each) for each in re.findall(r"(\d+) [a-z]", said[3]))
            found.append((start, end, number, link["href"]))
    return found


@pytest.mark.parametrize("query", ["", "range=24h", "range=all", "from={}&to={}", "from={}"])
async def test_every_bar_is_of_the_events_it_leads_to_and_none_outside_of_the_range(
    look, db, store, query
):
    now = await store.now()
    day_ago = now - timedelta(days=1)
    start = day_ago.replace(hour=3, minute=20, second=0, microsecond=1000)
    end = start + timedelta(hours=9, minutes=20)
    offsets = [timedelta(seconds=each) for each in (-90, -1, 1, 90)]
    instants = [edge + offset for edge in (day_ago, start, end) for offset in offsets]
    random_ = random.Random(1)
    attempt = history.attempt(1, now, random_, succeeds=True)
    await db.events.insert_many(
        history.made(new_event(b"{}"), at, [attempt], "DELIVERED") for at in [*instants, now]
    )
    page = await look("/console?" + query.format(*map(stamp, (start, end))))
    bars = bars_of(page)
    shown = set(ids(page))
    assert sum(number for _, _, number, _ in bars) == len(shown)
    for since, until, number, address in bars:
        led_to = await look(address)
        assert (len(ids(led_to)), set(ids(led_to)) <= shown) == (number, True)
        assert f"from={quote(stamp(since))}&to={quote(stamp(until))}" in address
    first, last = bars[0][0], bars[-1][1]
    if query.startswith("from"):
        assert first == start
        assert last == end if "to=" in query else last > now
    else:
        assert first == min(instants) if query == "range=all" else first >= day_ago
        assert now < last <= await store.now() + timedelta(milliseconds=1)


async def test_due_events_and_replicas_are_told(look, past):
    page = await look("/console")
    assert past
    assert re.search(r"Due now [1-9] oldest for \d+ s", page.text)
    assert "Replicas 3 1 silent" in page.text
    assert re.search(r"dispatcher worker-2-7003-5fc3a1 3 min ago Silent", page.text)
    assert re.search(r"ingest web-1-7000-5fc0a1 \d s ago Heard", page.text)


@pytest.mark.parametrize(
    ("query", "wanted"),
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
async def test_a_filter_shows_exactly_what_it_names(look, past, query, wanted):
    page = await look(f"/console?range=all&limit=200&{query}")
    expected = [each["_id"] for each in past if wanted(each)]
    assert sorted(ids(page)) == sorted(expected)
    assert f"{len(expected)} event" in page.text


async def test_fields_left_empty_do_not_stay_in_the_address(look):
    answer = await look("/console?status=DELIVERED&event_type=&from=&to=&sort=&limit=25")
    assert answer.status == 302
    assert answer.headers["Location"] == "/console?status=DELIVERED&limit=25"


async def test_a_filter_that_cannot_be_used_is_said_to_be_wrong_where_it_was_typed(look, past):
    page = await look("/console?min_attempts=many&event_type=push")
    assert past
    assert page.status == 422
    [field] = page.all("input", name="min_attempts")
    assert (field["aria-invalid"], field["value"]) == ("true", "many")
    assert page.all("p", id=field["aria-describedby"])
    assert page.all("input", name="event_type")[0]["value"] == "push"
    assert "Not a valid integer" in page.text
    assert ids(page) == []


@pytest.mark.parametrize("sort", ["-received_at", "received_at", "-attempt_count", "attempt_count"])
async def test_pages_forth_and_back_show_every_event_once_and_in_order(look, past, sort):
    forth, page = [], await look(f"/console?range=all&limit=25&sort={sort}")
    pages = [ids(page)]
    while following := page.all("a", rel="next"):
        page = await look(following[0]["href"])
        pages.append(ids(page))
    forth = [each for some in pages for each in some]
    assert sorted(forth) == sorted(each["_id"] for each in past)
    assert len(pages) == 6
    for expected in pages[-2:0:-1]:
        page = await look(page.all("a", rel="prev")[0]["href"])
        assert ids(page) == expected
    first = await look(page.all("a", rel="prev")[0]["href"])
    if first.status == 302:
        first = await look(first.headers["Location"])
    assert ids(first) == pages[0]
    assert not first.all("a", rel="prev")


async def test_an_empty_store_says_how_to_send_the_first_event(look):
    assert "python -m wds send --count 5" in (await look("/console?range=all")).text


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
@pytest.mark.usefixtures("past")
async def test_a_range_may_reach_to_the_ends_of_time(look, query):
    assert (await look(f"/console?{query}")).status == 200


async def test_a_range_without_events_leads_to_all_time(look, db, store):
    assert store
    await db.events.insert_many(history.past(history.utc_now() - timedelta(days=9), 3))
    page = await look("/console")
    assert "Look at all time" in page.text
    assert len(ids(await look("/console?range=all"))) == 3


@pytest.mark.usefixtures("past")
async def test_the_filters_leave_the_room_to_the_events_unless_there_are_none(look):
    """With the filters open the first event was below the fold; those in force stand above it."""
    found = await look("/console?range=all&status=FAILED_PERMANENTLY")
    [panel] = found.all("details", id="filters")
    assert "open" not in panel
    assert "status FAILED_PERMANENTLY" in found.text
    assert found.links("/console/replay") and found.links("/console/cancel")
    none = await look("/console?range=all&source=nobody")
    [panel] = none.all("details", id="filters")
    assert "open" in panel
    assert "Nothing that matches was received in this range." in none.text
    assert not none.links("/console/replay") + none.links("/console/cancel")
    [panel] = (await look("/console?min_attempts=x")).all("details", id="filters")
    assert "open" in panel


async def test_counting_that_takes_too_long_leaves_the_events_there(look, past, monkeypatch):
    async def slow(*_, **__):
        raise StoreUnavailableError

    monkeypatch.setattr(Rollups, "status_counts", slow)
    page = await look("/console?range=all")
    assert page.status == 200
    assert "Counting took too long" in page.text
    assert len(ids(page)) == min(len(past), 50)


async def test_counts_are_asked_for_once_by_many_who_look(look, past, monkeypatch):
    asked = []
    status_counts = Rollups.status_counts

    async def counted(self, *arguments, **more):
        asked.append(arguments)
        return await status_counts(self, *arguments, **more)

    monkeypatch.setattr(Rollups, "status_counts", counted)
    monkeypatch.setattr("wds.console.cache.LEAST_S", 60.0)
    pages = await asyncio.gather(
        *(look("/console") for _ in range(8)), look("/console?status=DELIVERED")
    )
    assert past
    assert [page.status for page in pages] == [200] * 9
    assert len(asked) == 1


async def test_while_the_database_is_away_a_page_says_so_and_comes_again(settings):
    nowhere = Store("mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=200&replicaSet=x", "none")
    try:
        async with looking(settings, nowhere) as look:
            page = await look("/console")
    finally:
        await nowhere.close()
    assert (page.status, page.headers["Retry-After"]) == (503, "5")
    assert "MongoDB does not answer" in page.text
    assert page.all("meta", http_equiv="refresh", content="5")
    assert page.all("section", data_retry="5000")


@pytest.mark.parametrize(
    ("sought", "leads"),
    [
        ("{id}", "/console/events/{id}"),
        ("{ID}", "/console/events/{id}"),
        ("0" * 32, "/console?id_prefix=" + "0" * 32),
        ("01a2b3", "/console?id_prefix=01a2b3"),
        ("order-17", "/console?idempotency_key=order-17"),
        ("a b&c", "/console?idempotency_key=a+b%26c"),
    ],
)
async def test_find_leads_to_what_was_meant(look, past, sought, leads):
    known = past[0]["_id"]
    answer = await look(f"/console/find?q={quote(sought.format(id=known, ID=known.upper()))}")
    assert answer.headers["Location"] == leads.format(id=known)


# -- one event -------------------------------------------------------------------------------


async def test_an_event_is_told_whole(look, past):
    event = next(each for each in past if each["attempt_count"] == 3)
    page = await look(f"/console/events/{event['_id']}")
    for attempt in event["attempts"]:
        assert f"Attempt {attempt['attempt_number']} " in page.text
        for shown in (attempt["error"], attempt["response"]):
            assert shown is None or shown in page.text
    for shown in ("user-agent", "GitHub-Hookshot/044aadd", event["payload_sha256"].hex()):
        assert shown in page.text
    assert re.sub(r"\s", "", event["payload"].decode()) in re.sub(r"\s", "", page.text)


@pytest.mark.parametrize(
    "payload", [b'{"a":"' + b"x" * 900_000 + b'"}', b'{"a":[' + b"1," * 300_000 + b"1]}"]
)
async def test_a_large_payload_is_cut_on_the_page_and_whole_in_the_file(look, store, payload):
    event = new_event(payload)
    await store.writer.insert([event])
    page = await look(f"/console/events/{event.id}")
    assert "Cut here" in page.text
    assert len(page.html) < 2_500_000
    assert (await look(f"/console/events/{event.id}/payload")).html.encode() == payload


async def test_a_payload_that_is_no_json_is_shown_as_it_is(look, db, store):
    event = new_event(b"payload=%7B%22a%22%3A1%7D&x=\xff<b>")
    await store.writer.insert([event])
    page = await look(f"/console/events/{event.id}")
    assert await db.events.count_documents({}) == 1
    assert "payload=%7B%22a%22%3A1%7D&x=\ufffd<b>" in page.text
    assert not page.all("pre", class_="json")


# -- actions ---------------------------------------------------------------------------------


async def test_a_replay_is_asked_for_and_done_once_however_often_it_is_sent(look, past, db):
    event = next(each for each in past if each["status"] == "FAILED_PERMANENTLY")
    path = f"/console/events/{event['_id']}/replay"
    fields = {**await form(look, path), "by": "ada", "reason": "fixed"}
    for _ in range(2):
        answer = await look(path, data=fields)
        assert (answer.status, answer.headers["Location"]) == (
            303,
            f"/console/events/{event['_id']}?notice=replayed",
        )
    now = await db.events.find_one({"_id": event["_id"]})
    assert now["status"] == "DELIVERING"
    [entry] = now["history"]
    assert (entry["by"], entry["reason"], entry["action"]) == ("ada", "fixed", "replay")
    page = await look(f"/console/events/{event['_id']}?notice=replayed")
    assert "Replayed" in page.text
    assert "by ada (127.0.0.1): fixed" in page.text


async def test_a_cancel_ends_an_event_that_waits(look, past, db):
    event = next(each for each in past if each["status"] == "RECEIVED")
    path = f"/console/events/{event['_id']}/cancel"
    answer = await look(path, data=await form(look, path))
    assert answer.headers["Location"].endswith("?notice=cancelled")
    assert (await db.events.find_one({"_id": event["_id"]}))["status"] == "FAILED_PERMANENTLY"


async def test_what_cannot_be_done_is_not_offered_and_refused_with_a_reason(look, past):
    event = next(each for each in past if each["status"] == "DELIVERED")
    path = f"/console/events/{event['_id']}/cancel"
    assert path not in (await look(f"/console/events/{event['_id']}")).links("/console/events/")
    page = await look(path)
    assert page.all("button", class_="danger", disabled=None)
    possible = next(each for each in past if each["status"] == "RECEIVED")
    page = await look(f"/console/events/{possible['_id']}/cancel")
    assert page.all("button", class_="danger")
    assert not page.all("button", class_="danger", disabled=None)
    refused = await look(path, data=await form(look, path))
    assert refused.status == 409
    assert "nothing to cancel" in refused.text


async def test_a_bulk_replay_is_about_exactly_what_its_page_counted(look, past, db):
    path = "/console/replay?status=FAILED_PERMANENTLY&range=all"
    page = await look(path)
    failed = [each["_id"] for each in past if each["status"] == "FAILED_PERMANENTLY"]
    assert f"Replay {len(failed)} events?" in page.text
    fields = {each["name"]: each["value"] for each in page.all("input", type="hidden")}
    # Received after the page was made: not meant.
    late = history.made(
        new_event(b"{}"),
        history.utc_now() + timedelta(seconds=1),
        [history.attempt(1, history.utc_now(), random.Random(1), succeeds=False)],
        "FAILED_PERMANENTLY",
    )
    await db.events.insert_one(late)

    unsure = await look("/console/replay", data=fields)
    assert unsure.status == 422
    assert "Tick the box" in unsure.text
    assert await db.bulk_actions.count_documents({}) == 0

    fields |= {"sure": "yes", "by": "ada", "per_second": "0"}
    begun = await look("/console/replay", data=fields)
    again = await look("/console/replay", data=fields)
    assert begun.status == again.status == 303
    assert begun.headers["Location"] == again.headers["Location"]
    assert await db.bulk_actions.count_documents({}) == 1

    done = await eventually(
        lambda: look(begun.headers["Location"]), lambda page: "Done" in page.text
    )
    assert f"{len(failed)} replayed" in done.text
    changed = [each["_id"] async for each in db.events.find({"history.by": "ada"}, {"_id": 1})]
    assert sorted(changed) == sorted(failed)
    assert "Replay" in (await look("/console/actions")).text


async def test_a_bulk_form_leads_back_to_the_view_it_came_from_and_nowhere_else(look, past):
    view = "status=FAILED_PERMANENTLY&event_type=push&range=7d&sort=received_at&limit=25"
    fields = await form(look, f"/console/cancel?{view}")
    assert past
    for back in (fields["back"], f"https://evil.example/?{view}"):
        refused = await look("/console/cancel", data={**fields, "back": back})
        assert refused.status == 422
        assert refused.all("a", href=f"/console?{quote(view, safe='=&')}", class_="button")
    refused = await look("/console/cancel", data={**fields, "back": "javascript:alert(1)"})
    assert refused.all("a", href="/console", class_="button")


async def test_a_bulk_action_that_takes_too_long_to_count_can_be_begun_all_the_same(
    look, past, db, monkeypatch
):
    async def slow(*_, **__):
        raise StoreUnavailableError

    monkeypatch.setattr(Rollups, "counts", slow)
    page = await look("/console/replay?range=all&status=FAILED_PERMANENTLY")
    assert "Replay all that match?" in page.text
    assert "Counting took too long" in page.text
    fields = {each["name"]: each["value"] for each in page.all("input", type="hidden")}
    begun = await look("/console/replay", data=fields | {"sure": "yes"})
    done = await eventually(
        lambda: look(begun.headers["Location"]), lambda page: "Done" in page.text
    )
    failed = sum(each["status"] == "FAILED_PERMANENTLY" for each in past)
    assert f"{failed} replayed" in done.text
    assert await db.events.count_documents({"history": {"$exists": True}}) == failed
    assert (await look("/console/actions")).status == 200


@pytest.mark.parametrize(
    ("field", "value"), [("limit", "0"), ("limit", "x"), ("per_second", "-1"), ("by", "\x07")]
)
async def test_a_bulk_form_filled_in_wrongly_says_where(look, past, db, field, value):
    assert past
    fields = {**await form(look, "/console/replay?range=all"), "sure": "yes", field: value}
    page = await look("/console/replay", data=fields)
    assert page.status == 422
    assert page.all("p", id=f"problem-{field}")
    assert await db.bulk_actions.count_documents({}) == 0


async def test_a_running_bulk_action_can_be_stopped(look, past, db, monkeypatch):
    assert past
    monkeypatch.setattr("wds.storage.bulk_actions.CHUNK", 1)
    started = bulk("r1", history.utc_now()) | {
        "state": "running",
        "lease": {"token": "t", "owner": "o", "until": history.utc_now() + timedelta(minutes=1)},
    }
    del started["finished_at"]
    await db.bulk_actions.insert_one(started)
    fields = await form(look, "/console/actions/r1")
    answer = await look("/console/actions/r1/stop", data=fields)
    assert answer.headers["Location"] == "/console/actions/r1"
    assert (await db.bulk_actions.find_one({"_id": "r1"}))["stop_requested"]
    assert "Stopping" in (await look("/console/actions/r1")).text
