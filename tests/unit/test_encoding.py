"""JSON encoding of subclasses of built-in types, and of types that JSON has not."""

from __future__ import annotations

import json

import pytest
from bson import Int64

from wds.domain.deliveries import Status
from wds.encoding import json_default
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
