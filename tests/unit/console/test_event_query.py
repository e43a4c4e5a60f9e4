"""The query string of the events page: parsing, error messages, and links."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

import pytest

from wds.api import event_schemas
from wds.console import event_query
from wds.domain.event_filter import EventFilter, Position
from wds.storage import event_queries

NOW = datetime(2026, 3, 5, 14, 23, 7, 250_000, tzinfo=UTC)


def parse(text):
    return event_query.parse(parse_qsl(text, keep_blank_values=True))


def parameters(url):
    return parse_qsl(urlsplit(url).query)


def test_parse_of_nothing_is_the_last_day_newest_first():
    query = parse("")
    assert (query.range, query.sort, query.is_first_page, dict(query.problems)) == (
        "24h",
        "-received_at",
        True,
        {},
    )
    assert query.bounds(NOW) == (NOW - timedelta(days=1), None)


@pytest.mark.parametrize("text", ["id_prefix=01a2", "idempotency_key=k"])
def test_parse_of_an_id_or_key_covers_all_time(text):
    assert parse(text).range == "all"
    assert parse(f"{text}&range=1h").range == "1h"


def test_event_filter_means_the_same_as_in_the_api():
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
    assert event_queries.match(parse(text).event_filter(NOW)) == expected


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
def test_parse_names_the_wrong_parameter_and_raises_nothing(text, name):
    query = parse(text)
    assert list(query.problems) == [name]
    assert query.problems[name][0]


def test_cursor_belongs_to_its_order_and_before_reads_backwards():
    position = Position(NOW, "0" * 32, 3)
    cursor = event_schemas.cursor_after(position, "attempt_count")
    assert parse(f"sort=attempt_count&cursor={cursor}").read_order == ("attempt_count", position)
    assert parse(f"sort=attempt_count&before={cursor}").read_order == ("-attempt_count", position)
    assert "cursor" in parse(f"cursor={cursor}").problems
    assert "before" in parse(f"cursor={cursor}&before={cursor}&sort=attempt_count").problems


def test_urls_keep_the_filters_and_drop_the_cursor():
    cursor = event_schemas.cursor_after(Position(NOW, "0" * 32), "-received_at")
    query = parse(f"status=DELIVERED&event_type=a%26b&range=7d&cursor={cursor}")
    kept = [("status", "DELIVERED"), ("event_type", "a&b")]
    assert parameters(query.url_with()) == [*kept, ("range", "7d")]
    assert parameters(query.url_for_range("1h")) == [*kept, ("range", "1h")]
    assert parameters(query.url_between(NOW - timedelta(hours=1), NOW)) == [
        *kept,
        ("from", "2026-03-05T13:23:07.250"),
        ("to", "2026-03-05T14:23:07.250"),
    ]
    assert parameters(query.url_without("status", "DELIVERED")) == [
        ("event_type", "a&b"),
        ("range", "7d"),
    ]
    assert parameters(query.url)[-1] == ("cursor", cursor)


def test_url_toggling_adds_a_status_and_removes_it_again():
    once = parse(urlsplit(parse("").url_toggling("DELIVERED")).query)
    assert once.statuses == ("DELIVERED",)
    assert parse(urlsplit(once.url_toggling("DELIVERED")).query).statuses == ()


@pytest.mark.parametrize(
    "instant", [NOW, NOW.replace(microsecond=0), NOW.replace(second=0, microsecond=0)]
)
def test_datetime_local_is_parsed_back_to_the_same_instant(instant):
    assert parse(f"from={event_query.datetime_local(instant)}").bounds(NOW)[0] == instant


def test_filter_json_has_the_range_as_instants():
    body = parse("status=DELIVERED&range=1h").filter_json(NOW)
    assert body == {"status": ["DELIVERED"], "from": "2026-03-05T13:23:07.250Z"}
