"""Requests as strict JSON."""

from __future__ import annotations

import pytest

from wds.domain.errors import Refusal
from wds.web.json_body import parse_request, require_object


def test_parse_request_keeps_integers_of_18_digits_exact():
    value = parse_request(b'{"a":999999999999999999,"b":50}')
    assert value == {"a": 999_999_999_999_999_999, "b": 50}
    assert all(isinstance(number, int) for number in value.values())


@pytest.mark.parametrize("value", [1, "a", None, [], [{}], True], ids=ascii)
def test_require_object_refuses_other_values_with_their_path(value):
    assert require_object({"a": 1}, "events.3") == {"a": 1}
    with pytest.raises(Refusal) as caught:
        require_object(value, "events.3")
    [detail] = caught.value.details
    assert (detail.field, detail.message) == ("events.3", "must be a JSON object")
