"""Sample events."""

from __future__ import annotations

import pytest

from wds.ingestion import payload
from wds.local import sample_events


def bodies(count, seed):
    return [sample.body for sample in sample_events.generate(count, seed)]


def test_the_same_seed_yields_the_same_bytes():
    assert list(sample_events.generate(50, 7)) == list(sample_events.generate(50, 7))


def test_a_longer_run_begins_with_the_shorter_one():
    assert bodies(50, 7)[:20] == bodies(20, 7)


def test_another_seed_yields_other_bytes():
    assert not set(bodies(50, 1)) & set(bodies(50, 2))


def test_no_two_samples_of_a_run_are_equal():
    assert len(set(bodies(500, 1))) == 500


@pytest.mark.parametrize("count", [0, 1, 3, 17])
def test_as_many_come_as_were_asked_for(count):
    assert len(bodies(count, 1)) == count


def test_every_sample_is_a_json_object_of_the_type_it_claims():
    for sample in sample_events.generate(200, 3):
        value = payload.read_fields(sample.body, ["event_type", "type"])
        assert (
            payload.first_event_type([value.get("event_type"), value.get("type")])
            == sample.event_type
        )


def test_different_types_come_in_turn():
    types = [sample.event_type for sample in sample_events.generate(10, 1)]
    assert len(set(types)) == 5
    assert types[:5] == types[5:]


def test_samples_hold_text_beyond_ascii():
    assert any(not body.isascii() for body in bodies(20, 1))


@pytest.mark.parametrize(
    ("sender", "types"),
    [
        ("github", {"push", "issues"}),
        ("stripe", {"charge.succeeded"}),
        ("slack", {"event_callback"}),
    ],
)
def test_a_senders_samples_are_of_its_own_shapes(sender, types):
    assert {sample.event_type for sample in sample_events.generate(10, 1, sender)} == types
