"""The JSON shape of a search request."""

from __future__ import annotations

import base64
import random
from datetime import UTC, datetime, timedelta

import pytest

from wds.api import event_schemas
from wds.api.event_schemas import (
    MAX_PAGE,
    MAX_SKIP,
    FilterSchema,
    SearchRequestSchema,
    cursor_after,
)
from wds.domain.errors import Refusal
from wds.domain.event_filter import FILTERS, SORTS, EventFilter, Position
from wds.web import schemas
from wds.web.json_body import parse_request

OPERATORS = [{"$gt": ""}, {"$ne": None}, {"$where": "1"}, [{"$gt": ""}], [["a"]], {}]


def load(**body):
    return schemas.load(SearchRequestSchema(), body)


def problems(**body):
    with pytest.raises(Refusal) as caught:
        load(**body)
    assert (caught.value.status, caught.value.code) == (422, "invalid_request")
    return [detail.field for detail in caught.value.details]


def test_search_request_defaults_to_50_newest_with_aggregations():
    assert load() == {
        "sort": "-received_at",
        "skip": 0,
        "limit": 50,
        "include_payload": False,
        "aggregations": True,
    }


@pytest.mark.parametrize("field", ["status", "event_type"])
def test_filter_of_one_value_or_many_is_loaded_as_a_list(field):
    assert load(**{field: "DELIVERED"})[field] == ["DELIVERED"]
    assert load(**{field: ["DELIVERED", "RECEIVED"]})[field] == ["DELIVERED", "RECEIVED"]


@pytest.mark.parametrize("field", ["status", "event_type"])
@pytest.mark.parametrize("count", [0, 101])
def test_filter_list_holds_1_to_100_values(field, count):
    assert len(load(**{field: ["DELIVERED"] * 100})[field]) == 100
    assert problems(**{field: ["DELIVERED"] * count}) == [field]


@pytest.mark.parametrize("field", ["status", "event_type"])
@pytest.mark.parametrize("value", [None, 7, True, ["DELIVERED", 7], *OPERATORS], ids=str)
def test_status_and_type_filters_refuse_values_other_than_text(field, value):
    [place] = problems(**{field: value})
    assert place.split(".")[0] == field


@pytest.mark.parametrize("value", ["delivered", "", "DELIVERED ", "GONE"])
def test_status_filter_refuses_an_unknown_status(value):
    assert problems(status=["RECEIVED", value]) == ["status.1"]


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-03-01T12:00:00Z", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        ("2026-03-01T12:00:00", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        ("2026-03-01T12:00:00.250+02:00", datetime(2026, 3, 1, 10, 0, 0, 250_000, tzinfo=UTC)),
        ("2026-03-01T23:30:00-05:45", datetime(2026, 3, 2, 5, 15, tzinfo=UTC)),
        ("2026-03-01", datetime(2026, 3, 1, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
@pytest.mark.parametrize("field", ["from", "to"])
def test_instant_filter_is_loaded_as_utc(field, text, instant):
    read = load(**{field: text})["from_" if field == "from" else field]
    assert read == instant and read.utcoffset() == timedelta(0)


@pytest.mark.parametrize("field", ["from", "to"])
@pytest.mark.parametrize(
    "value",
    [
        *["", "yesterday", "2026-13-01", "12:00", "2026-03-01T25:00:00Z", "2026-03-01\0"],
        *["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"],
        *[0, 1772000000, True, None, *OPERATORS],
    ],
    ids=ascii,
)
def test_instant_filter_refuses_malformed_instants(field, value):
    assert problems(**{field: value}) == [field]


def test_from_filter_must_not_be_after_to():
    early, late = "2026-03-01T12:00:00Z", "2026-03-01T12:00:01Z"
    assert load(**{"from": early, "to": late})["from_"] < load(to=late)["to"]
    assert load(**{"from": early, "to": early})["to"]
    assert problems(**{"from": late, "to": early}) == ["to"]
    assert problems(**{"from": "2026-03-01T12:00:00-01:00", "to": "2026-03-01T12:30:00Z"}) == ["to"]


@pytest.mark.parametrize(
    ("field", "least", "most"), [("limit", 1, MAX_PAGE), ("skip", 0, MAX_SKIP)]
)
def test_limit_and_skip_have_bounds(field, least, most):
    assert load(**{field: least})[field] == least
    assert load(**{field: most})[field] == most
    for beyond in (least - 1, most + 1, -1, 10**9, -(10**30)):
        assert problems(**{field: beyond}) == [field]


@pytest.mark.parametrize("field", ["limit", "skip"])
@pytest.mark.parametrize("value", ["5", "", 5.0, 5.5, True, None, [], float("inf"), *OPERATORS])
def test_limit_and_skip_refuse_values_other_than_integers(field, value):
    assert problems(**{field: value}) == [field]


@pytest.mark.parametrize(
    "value", ["", "\ud800", "a\0b", "x" * 256], ids=["empty", "surrogate", "nul", "long"]
)
def test_type_filter_refuses_a_type_that_no_event_can_have(value):
    assert set(problems(event_type=value)) == {"event_type.0"}


@pytest.mark.parametrize("number", ["9" * 30, "9" * 5_000, "1e999", "-1e999", "5e1"], ids=len)
def test_search_request_refuses_odd_json_numbers(number):
    body = parse_request(f'{{"limit":{number},"skip":{number}}}'.encode())
    assert sorted(problems(**body)) == ["limit", "skip"]


@pytest.mark.parametrize("field", ["include_payload", "aggregations"])
def test_boolean_fields_accept_true_and_false(field):
    assert load(**{field: True})[field] is True
    assert load(**{field: False})[field] is False


@pytest.mark.parametrize("field", ["include_payload", "aggregations"])
@pytest.mark.parametrize("value", ["true", "on", "1", "", 0, 1, 1.0, 2, None, *OPERATORS])
def test_boolean_fields_refuse_everything_else(field, value):
    assert problems(**{field: value}) == [field]


def test_search_request_refuses_unknown_fields_by_name():
    found = problems(**{"$where": "1", "statuses": [], "from_": "2026-03-01"})
    assert sorted(found) == ["$where", "from_", "statuses"]
    assert problems(**{"x" * 9_999: 1}) == ["x" * 64]


def test_search_request_lists_every_problem():
    found = problems(status="GONE", limit=0, skip=-1, cursor="?", other=1)
    assert sorted(found) == ["cursor", "limit", "other", "skip", "status.0"]


def test_cursor_loads_to_the_position_it_was_made_of():
    rng = random.Random(5)
    for _ in range(2_000):
        instant = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
            milliseconds=rng.randrange(4_102_444_800_000)
        )
        event_id = f"{rng.getrandbits(128):032x}"
        position = Position(instant, event_id, rng.randrange(100))
        sort = rng.choice(list(SORTS))
        assert load(cursor=cursor_after(position, sort), sort=sort)["cursor"] == (sort, position)


def test_cursor_of_another_sort_is_refused():
    cursor = cursor_after(Position(datetime(2026, 3, 1, tzinfo=UTC), "e"), "received_at")
    assert problems(cursor=cursor) == ["cursor"]
    assert problems(cursor=cursor, sort="-attempt_count") == ["cursor"]


@pytest.mark.parametrize("attempts", [2**63, -(2**63) - 1, 10**30])
def test_cursor_with_a_number_beyond_mongodb_is_refused(attempts):
    position = Position(datetime(2026, 3, 1, tzinfo=UTC), "e", attempts)
    cursor = cursor_after(position, "-attempt_count")
    assert problems(cursor=cursor, sort="-attempt_count") == ["cursor"]


def test_cursor_needs_no_escaping_in_a_url():
    cursor = cursor_after(Position(datetime(2026, 3, 1, tzinfo=UTC), "~~~???>>>"))
    assert not set(cursor) & set("+/&?# ")
    assert load(cursor=cursor)["cursor"][1].event_id == "~~~???>>>"


def encoded(text):
    return base64.urlsafe_b64encode(text).decode()


@pytest.mark.parametrize(
    "value",
    ["", "x", "====", "é", "a b", 7, True, None]
    + [encoded(b":::"), encoded(b"1:a"), encoded(b"-received_at:0:1")]
    + [encoded(b"-received_at:0:" + at + b":a") for at in (b"now", b"1e3", b"nan", b"\xff")]
    + [encoded(b"-received_at:" + count + b":1:a") for count in (b"", b"x", b"1.5")]
    + [encoded(b"-received_at:0:" + b"9" * count + b":a") for count in (15, 30, 400, 5_000)]
    + [encoded(b"-received_at:0:-" + b"9" * 15 + b":a")]
    + [encoded(b"-received_at:0:1:ab") + "\n", *OPERATORS],
    ids=lambda value: ascii(value)[:24],
)
def test_cursor_refuses_malformed_text(value):
    assert problems(cursor=value) == ["cursor"]


def test_cursor_of_random_text_loads_or_is_refused():
    rng = random.Random(6)
    for _ in range(5_000):
        text = bytes(rng.choices(b"0123456789:-+_. ea\xff\0", k=rng.randrange(30)))
        try:
            _, (instant, event_id, _) = load(cursor=encoded(b"-received_at:" + text))["cursor"]
        except Refusal:
            continue
        else:
            assert instant.tzinfo is UTC and isinstance(event_id, str)


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("source", "shop", ["", "a\nb", 7, None]),
        ("destination", ["a", "b"], ["", {}]),
        ("idempotency_key", "order-1", ["", ["a"], 7, "x" * 256]),
        ("id_prefix", "0aF".lower(), ["", "g", "A", "0" * 33, 5, "$gt"]),
        ("min_attempts", 3, [-1, "3", 1.5, 2**31, True]),
        ("last_status_code", [500, 0], [-1, 1000, "500", [None], True]),
        ("sort", "attempt_count", ["", "payload", "-", 1]),
    ],
)
def test_filter_accepts_its_kind_of_value_and_nothing_else(field, good, bad):
    load(**{field: good})
    for value in bad:
        assert {each.split(".")[0] for each in problems(**{field: value})} == {field}


def test_filter_of_takes_the_filters_of_a_request_and_nothing_else():
    loaded = load(**{"from": "2026-01-01", "status": "DELIVERED", "min_attempts": 2, "limit": 3})
    assert event_schemas.filter_of(loaded) == EventFilter(
        from_=datetime(2026, 1, 1, tzinfo=UTC), status=["DELIVERED"], min_attempts=2
    )


def test_filter_schema_has_the_fields_of_event_filter_under_their_wire_names():
    found = {name: field.data_key for name, field in FilterSchema().fields.items()}
    assert found == {spec.name: spec.wire_name for spec in FILTERS}
