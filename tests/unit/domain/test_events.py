"""Event ids, payload hashes and the names of states."""

from __future__ import annotations

import hashlib
import itertools
import random
from datetime import UTC, datetime, timedelta

import pytest

from tests.support import new_event
from wds.domain.deliveries import Outcome, Status
from wds.domain.events import ID_LENGTH, derived_id, random_id

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def is_id(text):
    return len(text) == ID_LENGTH and set(text) <= set("0123456789abcdef")


def test_the_statuses_are_these_four():
    assert [*Status] == ["RECEIVED", "DELIVERING", "DELIVERED", "FAILED_PERMANENTLY"]


def test_the_outcomes_are_these_three():
    assert [*Outcome] == ["success", "failure", "unknown"]


def test_a_derived_id_is_half_the_sha256_of_the_length_prefixed_pair():
    """Stored ids depend on it: another formula would store every repeat again."""
    assert (
        derived_id("default", "order-1042")
        == (hashlib.sha256(b"7:default:order-1042").hexdigest()[:32])
    )


def test_a_derived_id_is_the_same_each_time():
    assert derived_id("default", "ключ 🔑") == derived_id("default", "ключ 🔑")
    assert is_id(derived_id("default", "ключ 🔑"))


def test_no_two_pairs_of_source_and_key_share_an_id():
    parts = ["".join(p) for n in range(4) for p in itertools.product("1:aé", repeat=n)]
    pairs = list(itertools.product(parts, repeat=2))
    assert len({derived_id(source, key) for source, key in pairs}) == len(pairs)


def test_a_random_id_is_an_id():
    assert is_id(random_id(NOW, bytes(10)))
    assert is_id(random_id(datetime(1970, 1, 1, tzinfo=UTC), b"\xff" * 10))
    assert is_id(random_id(datetime(9999, 12, 31, tzinfo=UTC), b"\xff" * 10))


def test_random_ids_sort_by_time_whatever_the_entropy():
    rng = random.Random(3)
    ids = [random_id(NOW + timedelta(milliseconds=5 * n), rng.randbytes(10)) for n in range(500)]
    assert ids == sorted(ids)


def test_random_ids_of_one_instant_differ_in_every_bit_of_entropy():
    ids = {random_id(NOW, (1 << bit).to_bytes(10, "big")) for bit in range(80)}
    assert len(ids) == 80


def test_the_payload_hash_is_sha256_of_the_exact_bytes():
    assert new_event(b'{"a": 1}').payload_sha256 == hashlib.sha256(b'{"a": 1}').digest()
    assert new_event(b'{"a": 1}').payload_sha256 != new_event(b'{"a":1}').payload_sha256


def test_a_verified_event_cannot_be_changed():
    with pytest.raises(AttributeError, match="immutable"):
        new_event().payload = b"{}"
