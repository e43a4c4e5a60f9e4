"""The console's address bar: read, judged, and written into links."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

import pytest

from wds.api import event_schemas
from wds.console import event_query
from wds.domain.event_filter import EventFilter, Position
from wds.storage import event_queries

NOW = datetime(2026, 3, 5, 14, 23, 7, 250_000, tzinfo=UTC)


def read(text):
    return event_query.read(parse_qsl(text, keep_blank_values=True))


def asked(address):
    return parse_qsl(urlsplit(address).query)


def test_an_empty_address_is_the_last_day_newest_first():
    seen = read("")
    assert (seen.range, seen.sort, seen.first, dict(seen.problems)) == (
        "24h",
        "-received_at",
        True,
        {},
    )
    assert seen.bounds(NOW) == (NOW - timedelta(days=1), None)


@pytest.mark.parametrize("text", ["id_prefix=01a2", "idempotency_key=k"])
def test_who_looks_for_one_event_looks_at_all_time(text):
    assert read(text).range == "all"
    assert read(f"{text}&range=1h").range == "1h"


def test_every_filter_means_what_the_api_means_by_it():
    text = (
        "status=DELIVERED&status=RECEIVED&event_type=a&source=s&destination=d&last_status_code=503"
        "&idempotency_key=k&id_prefix=0a&min_attempts=2&from=2026-03-01T10:00&to=2026-03-02T10:00:01"
    )
    expected = event_queries.match(
        EventFilter(
            status=["DELIVERED", "RECEIVED"],
            event_type=["a"],
            source=["s"],
            destination=["d"],
            last_status_code=[503],
            idempotency_key="k",
            id_prefix="0a",
            min_attempts=2,
            from_=datetime(2026, 3, 1, 10, tzinfo=UTC),
            to=datetime(2026, 3, 2, 10, 0, 1, tzinfo=UTC),
        )
    )
    assert event_queries.match(read(text).event_filter(NOW)) == expected


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("status=LOST", "status"),
        ("min_attempts=many", "min_attempts"),
        ("min_attempts=-1", "min_attempts"),
        ("min_attempts=1.5", "min_attempts"),
        ("min_attempts=99999999999999999999", "min_attempts"),
        ("last_status_code=abc", "last_status_code"),
        ("last_status_code=1000", "last_status_code"),
        ("id_prefix=xyz", "id_prefix"),
        ("from=yesterday", "from"),
        ("from=2026-03-02&to=2026-03-01", "to"),
        ("to=2026-99-99", "to"),
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("sort=size", "sort"),
        ("range=2h", "range"),
        ("range=1h&from=2026-03-02", "range"),
        ("cursor=nonsense", "cursor"),
        ("before=nonsense", "before"),
        ("colour=red", "colour"),
        ("from=2026-03-01&from=2026-03-02", "from"),
        ("event_type=%00", "event_type"),
    ],
)
def test_what_cannot_be_used_is_named_and_nothing_is_raised(text, name):
    seen = read(text)
    assert list(seen.problems) == [name]
    assert seen.problems[name][0]


def test_a_cursor_belongs_to_its_order_and_is_read_backwards_where_asked():
    place = Position(NOW, "0" * 32, 3)
    cursor = event_schemas.cursor_after(place, "attempt_count")
    assert read(f"sort=attempt_count&cursor={cursor}").reading == ("attempt_count", place)
    assert read(f"sort=attempt_count&before={cursor}").reading == ("-attempt_count", place)
    assert "cursor" in read(f"cursor={cursor}").problems
    assert "before" in read(f"cursor={cursor}&before={cursor}&sort=attempt_count").problems


def test_links_keep_what_is_asked_for_and_forget_the_place():
    cursor = event_schemas.cursor_after(Position(NOW, "0" * 32), "-received_at")
    seen = read(f"status=DELIVERED&event_type=a%26b&range=7d&cursor={cursor}")
    kept = [("status", "DELIVERED"), ("event_type", "a&b")]
    assert asked(seen.link()) == [*kept, ("range", "7d")]
    assert asked(seen.ranged("1h")) == [*kept, ("range", "1h")]
    assert asked(seen.narrowed(NOW - timedelta(hours=1), NOW)) == [
        *kept,
        ("from", "2026-03-05T13:23:07.250"),
        ("to", "2026-03-05T14:23:07.250"),
    ]
    assert asked(seen.without("status", "DELIVERED")) == [("event_type", "a&b"), ("range", "7d")]
    assert asked(seen.here)[-1] == ("cursor", cursor)


def test_a_status_is_added_and_taken_away_by_the_same_link():
    once = read(urlsplit(read("").toggled("DELIVERED")).query)
    assert once.statuses == ("DELIVERED",)
    assert read(urlsplit(once.toggled("DELIVERED")).query).statuses == ()


@pytest.mark.parametrize(
    "instant", [NOW, NOW.replace(microsecond=0), NOW.replace(second=0, microsecond=0)]
)
def test_an_instant_in_a_link_is_read_back_exactly(instant):
    assert read(f"from={event_query.stamp(instant)}").bounds(NOW)[0] == instant


def test_a_bulk_action_is_about_the_range_that_was_looked_at():
    body = read("status=DELIVERED&range=1h").body(NOW)
    assert body == {"status": ["DELIVERED"], "from": "2026-03-05T13:23:07.250Z"}
