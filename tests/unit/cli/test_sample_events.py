"""Sample events."""

from __future__ import annotations

import pytest

from wds.cli import sample_events
from wds.ingestion import payload


def bodies(count, seed):
    return [sample.body for sample in sample_events.generate(count, seed)]


def test_generate_yields_the_same_bytes_for_the_same_seed():
    assert list(sample_events.generate(50, 7)) == list(sample_events.generate(50, 7))


def test_generate_begins_a_longer_run_with_the_shorter_one():
    assert bodies(50, 7)[:20] == bodies(20, 7)


def test_generate_yields_other_bytes_for_another_seed():
    assert not set(bodies(50, 1)) & set(bodies(50, 2))


def test_generate_yields_no_sample_twice():
    assert len(set(bodies(500, 1))) == 500


@pytest.mark.parametrize("count", [0, 1, 3, 17])
def test_generate_yields_as_many_samples_as_requested(count):
    assert len(bodies(count, 1)) == count


def test_generate_yields_json_objects_with_their_event_type():
    for sample in sample_events.generate(200, 3):
        value = payload.read_fields(sample.body, ["event_type", "type"])
        assert (
            payload.first_event_type([value.get("event_type"), value.get("type")])
            == sample.event_type
        )


def test_generate_yields_every_type_in_turn():
    types = [sample.event_type for sample in sample_events.generate(10, 1)]
    assert len(set(types)) == 5
    assert types[:5] == types[5:]


def test_generate_yields_text_beyond_ascii():
    assert any(not body.isascii() for body in bodies(20, 1))


@pytest.mark.parametrize(
    ("sender", "types"),
    [
        ("github", {"push", "issues"}),
        ("stripe", {"charge.succeeded"}),
        ("slack", {"event_callback"}),
    ],
)
def test_generate_yields_only_the_types_of_a_provider(sender, types):
    assert {sample.event_type for sample in sample_events.generate(10, 1, sender)} == types
