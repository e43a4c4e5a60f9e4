"""The list of filters, and the text of a bulk action's filters."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from wds.api import event_schemas
from wds.domain.event_filter import (
    FILTERS,
    SORTS,
    EventFilter,
    filter_text,
    is_id_prefix,
    read_filter,
)
from wds.web import schemas

EVERY_FILTER = {
    "status": ["DELIVERED", "RECEIVED"],
    "event_type": "a",
    "source": ["s"],
    "destination": "d",
    "last_status_code": 503,
    "idempotency_key": "k",
    "id_prefix": "0a",
    "min_attempts": 2,
    "from": "2026-03-01",
    "to": "2026-03-02T10:00:01.250+02:00",
}


def test_filters_lists_every_field_of_event_filter_in_order():
    assert tuple(spec.name for spec in FILTERS) == EventFilter.__struct_fields__


@pytest.mark.parametrize("spec", FILTERS, ids=lambda spec: spec.name)
def test_in_use_names_the_filters_that_differ_from_their_default(spec):
    one = read_filter(filter_text({spec.wire_name: EVERY_FILTER[spec.wire_name]}))
    assert one.in_use() == [spec]
    assert one.counted_by_rollups is spec.in_rollups
    assert EventFilter().in_use() == []


@pytest.mark.parametrize("name", [*EVERY_FILTER, "all of them"])
def test_read_filter_reads_a_stored_text_as_the_api_reads_the_request(name):
    request = {name: EVERY_FILTER[name]} if name in EVERY_FILTER else EVERY_FILTER
    loaded = schemas.load(event_schemas.FilterSchema(), request)
    assert read_filter(filter_text({**request, "limit": 3})) == event_schemas.filter_of(loaded)


@pytest.mark.parametrize("to", ["2026-03-02T10:00", "2026-03-02T10:00Z", "2026-03-02T05:00-05:00"])
def test_read_filter_returns_instants_in_utc(to):
    assert repr(read_filter(filter_text({"to": to})).to) == repr(
        datetime(2026, 3, 2, 10, tzinfo=UTC)
    )


def test_filter_text_keeps_the_values_as_written_and_leaves_other_fields_out():
    request = {"status": "RECEIVED", "from": "2026-03-01", "limit": 3, "by": "ann"}
    assert filter_text(request) == '{"from": "2026-03-01", "status": "RECEIVED"}'


@pytest.mark.parametrize("text", ["not JSON", '{"from": "yesterday"}'])
def test_read_filter_refuses_malformed_text(text):
    with pytest.raises(ValueError, match=r"\w"):
        read_filter(text)


@pytest.mark.parametrize("text", ["", "g", "A", "0" * 33, "a b", "é"])
def test_is_id_prefix_refuses_what_no_id_begins_with(text):
    assert not is_id_prefix(text)


@pytest.mark.parametrize("text", ["0", "deadbeef", "0" * 32])
def test_is_id_prefix_accepts_what_an_id_can_begin_with(text):
    assert is_id_prefix(text)


@pytest.mark.parametrize("sort", SORTS)
def test_sorts_all_end_with_the_id_so_that_they_are_total(sort):
    assert SORTS[sort][-1][0] == "_id"
