"""Event ids and payload hashes."""

from __future__ import annotations

import hashlib
import itertools
import random
from datetime import UTC, datetime, timedelta

import pytest

from tests.support import new_event
from wds.domain.events import ID_LENGTH, derived_id, random_id

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def is_id(text):
    return len(text) == ID_LENGTH and set(text) <= set("0123456789abcdef")


def test_derived_id_is_half_the_sha256_of_the_length_prefixed_pair():
    """Stored ids depend on it: another formula would store every repeat again."""
    assert (
        derived_id("default", "order-1042")
        == (hashlib.sha256(b"7:default:order-1042").hexdigest()[:32])
    )


def test_derived_id_is_the_same_each_time():
    assert derived_id("default", "ключ 🔑") == derived_id("default", "ключ 🔑")
    assert is_id(derived_id("default", "ключ 🔑"))


def test_derived_id_differs_for_every_pair_of_source_and_key():
    parts = ["".join(p) for n in range(4) for p in itertools.product("1:aé", repeat=n)]
    pairs = list(itertools.product(parts, repeat=2))
    assert len({derived_id(source, key) for source, key in pairs}) == len(pairs)


def test_random_id_has_the_form_of_an_id():
    assert is_id(random_id(NOW, bytes(10)))
    assert is_id(random_id(datetime(1970, 1, 1, tzinfo=UTC), b"\xff" * 10))
    assert is_id(random_id(datetime(9999, 12, 31, tzinfo=UTC), b"\xff" * 10))


def test_random_id_sorts_by_time_for_any_entropy():
    rng = random.Random(3)
    ids = [random_id(NOW + timedelta(milliseconds=5 * n), rng.randbytes(10)) for n in range(500)]
    assert ids == sorted(ids)


def test_random_id_uses_every_bit_of_entropy():
    ids = {random_id(NOW, (1 << bit).to_bytes(10, "big")) for bit in range(80)}
    assert len(ids) == 80


def test_payload_sha256_is_of_the_exact_bytes():
    assert new_event(b'{"a": 1}').payload_sha256 == hashlib.sha256(b'{"a": 1}').digest()
    assert new_event(b'{"a": 1}').payload_sha256 != new_event(b'{"a":1}').payload_sha256


def test_new_event_is_immutable():
    with pytest.raises(AttributeError, match="immutable"):
        new_event().payload = b"{}"
