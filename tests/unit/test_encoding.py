"""Values of subclasses, as answers hold them, and what is no JSON."""

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
def test_a_value_of_a_subclass_is_answered_as_one_of_its_base(value):
    made = json_default(value)
    assert made == value and type(made) in {int, float, str}
    assert json.loads(json_answer({"a": [value]}).body) == {"a": [value]}


def test_what_the_writer_knows_is_answered():
    body = {"id": "a", "status": Status.DELIVERED, "n": None, "big": 1 << 70, "ok": True}
    assert json.loads(json_answer(body).body) == {**body, "status": "DELIVERED"}


@pytest.mark.parametrize("value", [object(), 1j, Exception("hush")])
def test_what_is_no_json_is_a_defect_and_not_quoted(value):
    with pytest.raises(TypeError) as caught:
        json_answer({"a": value})
    assert "hush" not in str(caught.value)
