"""Spans and sums of rollups: what of a span is still to be counted, and the total."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

from hypothesis import given, strategies as st

from wds.storage import rollup_queries

T0 = datetime(2026, 3, 1, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return T0 + timedelta(minutes=minutes)


def kept(hour: int, minutes: int) -> dict:
    return {"_id": at(60 * hour), "until": at(60 * hour + minutes)}


def test_uncounted_spans_are_the_whole_span_without_counted_hours():
    assert rollup_queries.uncounted_spans((at(0), at(90)), []) == [(at(0), at(90))]


def test_uncounted_spans_lie_between_and_around_counted_hours():
    counted = [kept(2, 60), kept(1, 60), kept(4, 20)]
    assert rollup_queries.uncounted_spans((at(30), at(400)), counted) == [
        (at(30), at(60)),
        (at(180), at(240)),
        (at(260), at(400)),
    ]


def test_uncounted_spans_are_empty_if_all_is_counted():
    assert rollup_queries.uncounted_spans((at(60), at(180)), [kept(1, 60), kept(2, 60)]) == []


@given(
    st.dictionaries(st.integers(0, 20), st.integers(1, 60), max_size=10),
    st.integers(0, 1300),
    st.integers(0, 1300),
)
def test_uncounted_spans_and_counted_hours_cover_the_span_once(counted, begin, end):
    span = (at(begin), at(end))
    usable = [
        each
        for each in (kept(hour, minutes) for hour, minutes in counted.items())
        if span[0] <= each["_id"] < span[1] and each["until"] <= span[1]
    ]
    parts = [
        *((each["_id"], each["until"]) for each in usable),
        *rollup_queries.uncounted_spans(span, usable),
    ]
    parts.sort()
    covered = [part for part in parts if part[0] < part[1]]
    if span[0] < span[1]:
        assert covered[0][0] == span[0] and covered[-1][1] == span[1]
    assert all(one[1] == two[0] for one, two in pairwise(covered))


def test_hour_of_an_instant_is_in_utc():
    east = timezone(timedelta(hours=5, minutes=30))
    assert rollup_queries.hour_of(datetime(2026, 3, 1, 5, 45, 1, tzinfo=east)) == T0


def test_summary_adds_up_by_status_type_and_hour_commonest_first():
    def one(hour: int, status: str, kind: str | None, count: int) -> dict:
        return {
            "_id": {"hour": at(60 * hour), "status": status, "event_type": kind},
            "count": count,
        }

    kept = {
        "kinds": [{"_id": {"status": "DELIVERED", "event_type": "b"}, "count": 5}],
        "histogram": [{"_id": at(0), "count": 5}],
    }
    added = rollup_queries.summary(kept, [one(1, "DELIVERED", "a", 2), one(1, "RECEIVED", None, 1)])
    assert added == {
        "by_status": [{"_id": "DELIVERED", "count": 7}, {"_id": "RECEIVED", "count": 1}],
        "by_event_type": [
            {"_id": "b", "count": 5},
            {"_id": "a", "count": 2},
            {"_id": "", "count": 1},
        ],
        "histogram": [{"_id": at(0), "count": 5}, {"_id": at(60), "count": 3}],
    }


def found(hour: int, first: float, last: float) -> dict:
    return {
        "_id": at(60 * hour),
        "first": at(60 * hour + first),
        "last": at(60 * hour + last) - rollup_queries.TICK,
    }


def test_possible_spans_are_known_events_and_uncounted_time():
    counted = [kept(4, 60), kept(3, 30), kept(2, 60), kept(1, 60)]
    there = [found(1, 5, 10), found(4, 59, 60)]
    places = [(at(0), at(60)), (at(65), at(70)), (at(210), at(240)), (at(299), at(400))]
    for newest_first in (False, True):
        order = places[::-1] if newest_first else places
        span = (at(0), at(400))
        assert (
            rollup_queries.possible_spans(span, counted, there, newest_first=newest_first) == order
        )


def test_possible_spans_near_each_other_are_joined_up_to_an_hour():
    counted = [kept(hour, 60) for hour in range(1, 5)]
    there = [found(1, 0, 55), found(2, 1, 55), found(4, 0, 60)]
    assert rollup_queries.possible_spans((at(60), at(300)), counted, there, newest_first=False) == [
        (at(60), at(175)),
        (at(240), at(300)),
    ]
    ends = (at(-10_000), at(10_000))
    assert rollup_queries.possible_spans(ends, counted, [], newest_first=False) == [
        (at(-10_000), at(60)),
        (at(300), at(10_000)),
    ]


def test_possible_spans_contain_an_hour_reopened_while_it_is_read():
    span, counted = (at(0), at(180)), [kept(0, 60), kept(1, 60), kept(2, 30)]
    reopened = {"_id": at(60), "first": None, "last": None}
    extended = found(2, 25, 40)
    assert rollup_queries.possible_spans(
        span, counted, [reopened, extended], newest_first=False
    ) == [
        (at(60), at(120)),
        (at(145), at(180)),
    ]


def test_possible_spans_end_with_the_span_if_counts_are_extended():
    span, counted = (at(0), at(45)), [kept(0, 30)]
    for extended, expected in (
        (found(0, 10, 60), [(at(10), at(45))]),
        (found(0, 50, 60), [(at(30), at(45))]),
    ):
        assert (
            rollup_queries.possible_spans(span, counted, [extended], newest_first=False) == expected
        )


def test_add_extends_first_and_last_of_a_kind():
    kind = dict.fromkeys(rollup_queries.KIND, "x")
    kept_kinds = [{**kind, "count": 2, "first": at(5), "last": at(7)}]
    other = {**kind, "source": "y"}
    tallied = [
        {"_id": {"hour": at(0), **kind}, "count": 1, "first": at(9), "last": at(9)},
        {"_id": {"hour": at(0), **other}, "count": 1, "first": at(8), "last": at(8)},
    ]
    assert rollup_queries.add(kept_kinds, tallied, rollup_queries.KIND) == [
        {**kind, "count": 3, "first": at(5), "last": at(9)},
        {**other, "count": 1, "first": at(8), "last": at(8)},
    ]
    assert rollup_queries.add([], tallied, rollup_queries.PAIR) == [
        {"status": "x", "event_type": "x", "count": 2}
    ]
