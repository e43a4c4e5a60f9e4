"""The operators' filters and orders as MongoDB will see them."""

from __future__ import annotations

from datetime import UTC, datetime

import bson
import pytest

from wds.domain.deliveries import Status
from wds.domain.event_filter import NEWEST_FIRST, SORTS, EventFilter, Position
from wds.storage import event_queries, indexes
from wds.storage.event_queries import match

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_match_without_filters_covers_every_instant():
    first = datetime.min.replace(tzinfo=UTC)
    assert match(EventFilter()) == {"received_at": {"$gte": first}}


def test_match_includes_from_and_excludes_to():
    later = NOW.replace(hour=13)
    assert match(EventFilter(from_=NOW, to=later)) == {"received_at": {"$gte": NOW, "$lt": later}}


def test_match_compares_values_and_never_interprets_them():
    query = match(
        EventFilter(
            status=["$where"], event_type=["$gt", "a"], idempotency_key="$ne", source=["$x"]
        )
    )
    assert query["status"] == {"$in": ["$where"]}
    assert query["event_type"] == {"$in": ["$gt", "a"]}
    assert query["idempotency_key"] == "$ne"
    assert query["source"] == {"$in": ["$x"]}


def test_match_turns_an_id_prefix_into_a_range_of_ids():
    query = match(EventFilter(id_prefix="0af"))["_id"]
    assert [
        each
        for each in ("0ae" + "f" * 29, "0af", "0af" + "0" * 29, "0af" + "f" * 29, "0b" + "0" * 30)
        if query["$gte"] <= each < query["$lt"]
    ] == ["0af", "0af" + "0" * 29, "0af" + "f" * 29]


def test_time_span_after_the_last_instant_stays_within_the_calendar():
    """Anybody can write one, and there is no instant after it."""
    last = Position(datetime.max.replace(microsecond=999_000, tzinfo=UTC), "e1")
    order = SORTS[NEWEST_FIRST]
    query = match(EventFilter())
    assert event_queries.time_span(
        event_queries.after(query, order, last)
    ) == event_queries.time_span(query)
    until = event_queries.time_span(event_queries.after(query, order, Position(NOW, "e1")))[1]
    assert NOW < until < NOW.replace(second=1)


@pytest.mark.parametrize("sort", SORTS)
def test_after_narrows_a_query_and_never_widens_it(sort):
    query = match(EventFilter(status=["DELIVERED"], to=NOW, id_prefix="a", min_attempts=2))
    narrowed = event_queries.after(query, SORTS[sort], Position(NOW, "e1", 3))
    assert query.items() <= narrowed.items()
    again = event_queries.after(narrowed, SORTS[sort], Position(NOW, "e2", 3))
    assert again["$and"][: len(narrowed["$and"])] == narrowed["$and"]


def test_after_includes_equal_instants_with_later_ids():
    narrowed = event_queries.after(match(EventFilter()), SORTS["received_at"], Position(NOW, "e1"))
    assert narrowed["$and"] == [
        {"received_at": {"$gte": NOW}},
        {"$or": [{"received_at": {"$gt": NOW}}, {"received_at": NOW, "_id": {"$gt": "e1"}}]},
    ]


@pytest.mark.parametrize(
    ("sort", "least", "position", "said"),
    [
        ("-attempt_count", 0, None, [{"$gte": 2}, {"$in": [1]}, {"$in": [0]}]),
        ("attempt_count", 0, None, [{"$in": [0]}, {"$in": [1]}, {"$gte": 2}]),
        ("-attempt_count", 3, None, [{"$gte": 3}]),
        ("-attempt_count", 1, Position(NOW, "e1", 1), [{"$in": [1]}]),
        ("attempt_count", 0, Position(NOW, "e1", 1), [{"$in": [1]}, {"$gte": 2}]),
        ("attempt_count", 0, Position(NOW, "e1", 4), [{"$gte": 2}]),
        ("-attempt_count", 0, Position(NOW, "e1", 4), [{"$gte": 2}, {"$in": [1]}, {"$in": [0]}]),
    ],
)
def test_split_by_attempts_gives_parts_that_an_index_has_in_order(sort, least, position, said):
    order = SORTS[sort]
    parts = event_queries.split_by_attempts(match(EventFilter(min_attempts=least)), order, position)
    assert [part.query["attempt_count"] for part in parts] == said
    for part in parts:
        several = "$gte" in part.query["attempt_count"]
        assert part.order == (order if several else order[1:])
    if position is not None:
        assert ["$and" in part.query for part in parts] == [True] + [False] * (len(parts) - 1)


@pytest.mark.parametrize("sort", ["received_at", "-received_at"])
def test_time_span_after_a_position_includes_its_instant(sort):
    query = match(EventFilter(from_=NOW.replace(hour=1), to=NOW.replace(hour=20)))
    begin, end = event_queries.time_span(
        event_queries.after(query, SORTS[sort], Position(NOW, "e1"))
    )
    if sort == "received_at":
        assert (begin, end) == (NOW, NOW.replace(hour=20))
    else:
        assert (begin, end) == (NOW.replace(hour=1), NOW.replace(microsecond=1000))


@pytest.mark.parametrize(
    ("given", "scattered"),
    [
        ({}, False),
        ({"status": ["DELIVERED"], "event_type": ["a"]}, False),
        ({"source": ["a", "b"], "from_": NOW}, False),
        ({"last_status_code": [500]}, False),
        ({"source": ["a"], "status": ["DELIVERED"]}, True),
        ({"destination": ["a"]}, True),
        ({"last_status_code": [500], "min_attempts": 6}, True),
        ({"event_type": ["a"], "source": ["a"], "id_prefix": "01"}, False),
        ({"source": ["a"], "status": ["DELIVERED"], "idempotency_key": "k"}, False),
    ],
)
def test_is_scattered_is_true_for_filters_that_no_index_has_together(given, scattered):
    assert event_queries.is_scattered(match(EventFilter(**given))) is scattered


@pytest.mark.parametrize(
    ("outcome", "index"),
    [
        ({"min_attempts": 1}, "search_time"),
        ({"min_attempts": 2}, "search_attempts"),
        ({"min_attempts": 2, "last_status_code": [500]}, "search_code"),
    ],
)
def test_counts_need_only_fields_of_the_hinted_index(outcome, index):
    keys = {index.document["name"]: index.document["key"] for index in indexes.EVENT_INDEXES}
    everything = match(
        EventFilter(
            status=["DELIVERED"],
            event_type=["a"],
            source=["s"],
            destination=["d"],
            id_prefix="a",
            from_=NOW,
            to=NOW,
            **outcome,
        )
    )
    assert event_queries.hint(everything) == index
    assert set(everything) <= set(keys[index])
    counted = event_queries.counts({})[1]["$project"]
    assert {name for name, shown in counted.items() if shown} <= set(keys[index])


@pytest.mark.parametrize(
    ("chosen", "index"),
    [
        ({"idempotency_key": "k", "status": ["DELIVERED"]}, "key"),
        ({"id_prefix": "abcd"}, "search_time"),
        ({"id_prefix": "abcde"}, "_id_"),
        ({"event_type": ["a"]}, "search_time"),
    ],
)
def test_hint_is_the_most_selective_index(chosen, index):
    assert event_queries.hint(match(EventFilter(**chosen))) == index
    assert (
        event_queries.hint(event_queries.narrow(match(EventFilter(**chosen)), {"status": "x"}))
        == index
    )


@pytest.mark.parametrize(
    "document",
    [
        {"p": event_queries.counts(match(EventFilter(status=[*Status], to=NOW)))},
        {"p": event_queries.sort_keys(match(EventFilter()), SORTS["attempt_count"], 2)},
    ],
    ids=["counts", "page"],
)
def test_pipelines_can_be_encoded_as_bson(document):
    assert bson.decode(bson.encode(document), bson.CodecOptions(tz_aware=True)) == document
