"""JSON encoding of subclasses of built-in types, and of types that JSON has not."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from bson import Int64

from wds.domain.deliveries import Status
from wds.encoding import instant_text, json_default
from wds.web.error_envelope import json_answer


class Ratio(float):
    pass


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize("value", [Int64(1 << 40), Ratio(0.5), Text("größe"), Text("")])
def test_json_default_writes_a_subclass_as_its_base_type(value):
    made = json_default(value)
    assert made == value and type(made) in {int, float, str}
    assert json.loads(json_answer({"a": [value]}).body) == {"a": [value]}


def test_json_answer_writes_built_in_types():
    body = {"id": "a", "status": Status.DELIVERED, "n": None, "big": 1 << 70, "ok": True}
    assert json.loads(json_answer(body).body) == {**body, "status": "DELIVERED"}


@pytest.mark.parametrize("value", [object(), 1j, Exception("hush")])
def test_json_default_refuses_other_types_without_quoting_them(value):
    with pytest.raises(TypeError) as caught:
        json_answer({"a": value})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("instant", "text"),
    [
        (datetime(2026, 3, 1, 12, tzinfo=UTC), "2026-03-01T12:00:00.000Z"),
        (datetime(2026, 3, 1, 12, 0, 0, 250_900, tzinfo=UTC), "2026-03-01T12:00:00.250Z"),
        (datetime(2026, 3, 1, tzinfo=timezone(timedelta(hours=2))), "2026-02-28T22:00:00.000Z"),
    ],
)
def test_instant_text_is_utc_with_milliseconds(instant, text):
    assert instant_text(instant) == text
