"""Reading fields, event types, keys and batches from bodies, and refusing bad ones."""

from __future__ import annotations

import json
import math
import random

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from wds.domain.errors import Detail, Refusal
from wds.ingestion import payload
from wds.ingestion.payload import read_fields, split_batch
from wds.web import json_body
from wds.web.json_body import parse_request

DEEP = b'{"a":' * 200_000 + b"1" + b"}" * 200_000


def member_a(body):
    return read_fields(body, ["a"])


def refusal(call, *args):
    with pytest.raises(Refusal) as caught:
        call(*args)
    return caught.value


NOT_JSON = [
    pytest.param(b"", id="empty"),
    pytest.param(b" \n", id="white_space"),
    pytest.param(b"{", id="cut_off"),
    pytest.param(b'{"a":1} x', id="trailing_text"),
    pytest.param(b'{"a":1}{"a":1}', id="two_documents"),
    pytest.param(b'{"a":1,}', id="trailing_comma"),
    pytest.param(b"{'a':1}", id="single_quotes"),
    pytest.param(b'{"a":01}', id="leading_zero"),
    pytest.param(b'{"a":+1}', id="plus_sign"),
    pytest.param(b'{"a":.5}', id="no_digit_before_the_point"),
    pytest.param('{"a":٣}'.encode(), id="digit_of_another_script"),
    pytest.param(b'{"a":NaN}', id="nan"),
    pytest.param(b'{"a":Infinity}', id="infinity"),
    pytest.param(b'{"a":[-Infinity]}', id="minus_infinity"),
    pytest.param(b'{"a":"\xff"}', id="invalid_utf8"),
    pytest.param(b'{"a":"\xc0\xaf"}', id="overlong_utf8"),
    pytest.param(b'{"a":"\xed\xa0\x80"}', id="surrogate_in_utf8"),
    pytest.param('{"a":1}'.encode("utf-16"), id="utf16_with_mark"),
    pytest.param('{"a":1}'.encode("utf-16-le"), id="utf16"),
    pytest.param('{"a":1}'.encode("utf-32-be"), id="utf32"),
    pytest.param(b'\xef\xbb\xbf{"a":1}', id="byte_order_mark"),
    pytest.param(b'{"a":"\0"}', id="nul_in_a_string"),
    pytest.param(b'{"a":1}\0', id="nul_after"),
    pytest.param(b'{"a":"\n"}', id="raw_newline_in_a_string"),
    pytest.param('\u00a0{"a":1}'.encode(), id="white_space_that_json_has_not"),
    pytest.param(DEEP, id="deep_objects"),
    pytest.param(b"[" * 200_000, id="deep_arrays"),
]


@pytest.mark.parametrize("read", [member_a, parse_request, split_batch])
@pytest.mark.parametrize("body", NOT_JSON)
def test_body_readers_refuse_other_than_json_with_400(read, body):
    refused = refusal(read, body)
    assert (refused.status, refused.code) == (400, "invalid_json")
    assert refused.message.startswith("the body is not") or "nested too deeply" in refused.message


@pytest.mark.parametrize("bad", NOT_JSON[2:])
def test_split_batch_refuses_an_element_that_is_not_json(bad):
    assert refusal(split_batch, b"[" + bad + b"]").status == 400
    assert refusal(split_batch, b'{"events":[' + bad + b"]}").status == 400


@pytest.mark.parametrize("body", [b"[]", b"[{}]", b'"a"', b"1", b"1.5", b"null", b"true", b" 0 "])
def test_read_fields_refuses_json_that_is_not_an_object_with_422(body):
    refused = refusal(member_a, body)
    assert (refused.status, refused.code) == (422, "invalid_request")
    assert refused.details == (Detail("", "must be a JSON object"),)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        pytest.param(b"{}", {}, id="empty_object"),
        pytest.param(b' \t\r\n{ "a" : [ ] }\n', {"a": []}, id="white_space_around"),
        pytest.param(b'{"a":1,"b":2,"a":3}', {"a": 3, "b": 2}, id="last_of_a_repeated_key"),
        pytest.param(b'{"a":"\\u0000"}', {"a": "\0"}, id="nul_escape"),
        pytest.param(b'{"a":"\\ud800"}', {"a": "\ud800"}, id="lone_surrogate_escape"),
        pytest.param(b'{"\\udfff":1}', {"\udfff": 1}, id="lone_surrogate_in_a_name"),
        pytest.param(b'{"a":"\\ud83d\\ude00"}', {"a": "😀"}, id="surrogate_pair"),
        pytest.param('{"é":"やかん"}'.encode(), {"é": "やかん"}, id="utf8"),
        pytest.param(b'{"$where":"1","a.b":{"$gt":""}}', {"$where": "1", "a.b": {"$gt": ""}}),
        pytest.param(b'{"":null}', {"": None}, id="empty_name"),
    ],
)
def test_read_fields_reads_any_json_object(body, value):
    assert read_fields(body, value) == value
    assert read_fields(body, []) == {}
    assert parse_request(body) == value


def test_read_fields_converts_only_the_fields_it_returns(monkeypatch):
    made = []
    whole = msgspec.json.Decoder()

    class Watching:
        def decode(self, raw):
            made.append(bytes(raw))
            return whole.decode(raw)

    monkeypatch.setattr(payload, "_VALUE", Watching())
    body = b'{"data":{"much":[1,2,3]},"type":"t","more":[[]]}'
    assert read_fields(body, ["event_type", "type"]) == {"type": "t"}
    assert made == [b'"t"']


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
PIECES = [b'"', b"\\", b"\\u", b"\\ud800", b"\xff", b"\xc3", b"\0", b"e", b"-", b"0", b".", b"NaN"]
PIECES += [b",", b":", b"[", b"]", b"{", b"}", b" ", b"\x0b", b"9" * 20, b"1e999", b"tru", b"/"]


@st.composite
def damaged(draw):
    """JSON with a few pieces inserted, removed or replaced."""
    whole = draw(st.dictionaries(st.sampled_from(["type", "b", "c"]), JSON, max_size=3))
    body = json.dumps(whole, ensure_ascii=draw(st.booleans())).encode()
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(body)))
        piece = draw(st.sampled_from([b"", *PIECES]))
        body = body[:at] + piece + body[at + draw(st.integers(0, 2)) :]
    return body


def outcome(call, *args):
    try:
        return call(*args)
    except Refusal as refused:
        return refused.status, refused.message


def rounded(value):
    """Return `value` with every number as a float: more is not guaranteed of numbers."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@settings(max_examples=1000, deadline=None)
@given(damaged())
def test_read_fields_judges_a_body_as_pythons_json_does(body):
    """Python's `json`, which converts everything, is the model of what is JSON."""
    whole = outcome(json_body.parse_text, payload._DECODER.decode, body)
    for names in ([], ["type"], ["b", "c"]):
        expected = whole
        if isinstance(whole, dict):
            expected = {name: whole[name] for name in names if name in whole}
        found = outcome(read_fields, body, names)
        assert (rounded(found) if isinstance(found, dict) else found) == expected


@pytest.mark.parametrize("digits", [20, 5_000, 1_000_000])
@pytest.mark.parametrize("sign", [b"", b"-"])
def test_read_fields_accepts_an_integer_of_any_length(digits, sign):
    number = sign + b"9" * digits
    assert isinstance(member_a(b'{"a":' + number + b"}")["a"], int | float)
    assert isinstance(parse_request(b'{"a":' + number + b"}")["a"], float)
    assert split_batch(b'[{"a":' + number + b"}]")[0][0] == b'{"a":' + number + b"}"


def test_read_fields_accepts_a_number_beyond_every_float():
    assert member_a(b'{"a":1e999}') == {"a": math.inf}
    assert read_fields(b'{"a":[1e999]}', ["b"]) == {}


def test_read_fields_reports_the_line_and_column_of_bad_json():
    message = refusal(member_a, b'{\n "a": x}').message
    assert "line 2 column 7" in message


@pytest.mark.parametrize("value", ["a", "order.created", "a" * 255, "größe 📏", " "])
def test_is_label_accepts_short_printable_text(value):
    assert payload.is_label(value)


NO_LABELS = ["", "a" * 256, "a\nb", "\0", "\ud800", "\udcff", "\u200b", "\u202e", "\x7f"]
NOT_TEXT = [0, 1.5, True, [], {}, ["a"], {"$gt": ""}]


@pytest.mark.parametrize("value", [*NO_LABELS, *NOT_TEXT, None], ids=ascii)
def test_is_label_refuses_anything_else(value):
    assert not payload.is_label(value)


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        (["a", "b"], "a"),
        ([None, "b"], "b"),
        ([{"$gt": ""}, 7, "c"], "c"),
        (["", "b"], "b"),
        (["\ud800", None, "\udcff", "d"], "d"),
        ([None, None], None),
        ([], None),
    ],
)
def test_first_event_type_is_the_first_label(candidates, expected):
    assert payload.first_event_type(candidates) == expected


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [(["a", "b"], "a"), ([None, "b"], "b"), (["a", "\0"], "a"), ([None, None], None), ([], None)],
)
def test_first_idempotency_key_is_the_first_value_that_exists(candidates, expected):
    assert payload.first_idempotency_key(candidates) == expected


@pytest.mark.parametrize("key", [*NO_LABELS, *NOT_TEXT], ids=ascii)
def test_first_idempotency_key_refuses_a_value_that_is_not_a_label(key):
    refused = refusal(payload.first_idempotency_key, [None, key, "b"], "events.3.")
    assert refused.status == 422
    assert [detail.field for detail in refused.details] == ["events.3.idempotency_key"]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"command=%2Fdeploy&text=a+b&empty=", {"command": "/deploy", "text": "a b", "empty": ""}),
        (b"a=1&a=2", {"a": "2"}),
        (b"x=1&payload=%7B%22type%22%3A%22block_actions%22%7D", {"type": "block_actions"}),
    ],
)
def test_read_form_fields_reads_fields_or_json_in_the_field_payload(body, fields):
    assert payload.read_form_fields(body, [*fields, "absent"]) == fields
    assert payload.read_form_fields(body, []) == {}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_form"),
        (b"no form", 400, "invalid_form"),
        (b'{"a":1}', 400, "invalid_form"),
        (b"a=%FF", 400, "invalid_form"),
        (b"a=\xff", 400, "invalid_form"),
        (b"&".join(b"a%d=1" % number for number in range(1001)), 400, "invalid_form"),
        (b"payload=no", 400, "invalid_json"),
        (b"payload=%5B%5D", 422, "invalid_request"),
    ],
)
def test_read_form_fields_refuses_other_bodies(body, status, code):
    refused = refusal(payload.read_form_fields, body, ["a"])
    assert (refused.status, refused.code) == (status, code)


@pytest.mark.parametrize(
    ("content_type", "is_json", "is_form"),
    [
        ("application/json", True, False),
        ("APPLICATION/JSON; charset=utf-8", True, False),
        ("application/vnd.a+json", True, False),
        ("text/json", False, False),
        ("application/x-www-form-urlencoded;charset=utf-8", False, True),
        ("", False, False),
    ],
)
def test_content_type_is_json_a_form_or_neither(content_type, is_json, is_form):
    assert (json_body.is_json(content_type), payload.is_form(content_type)) == (is_json, is_form)


PIECES = [
    b"{}",
    b"{ }",
    b'{"a":1 , "a":2}',
    b'{\r\n\t"nested": [[[], {}], [1, [2, "]"]]]\n}',
    '{"ключ": "\\"},{\\"", "é\\u0000": "📏"}'.encode(),
    b'{"big":' + b"1" * 5_000 + b"}",
    b'{"events":[{"events":[]}]}',
    b'{"s":"\\ud800 \\\\","n":-0.0e-0}',
]


def test_split_batch_returns_the_exact_bytes_of_its_events():
    """The elements and the text between them join to the body again, with any white space."""
    rng = random.Random(4)

    def gap():
        return bytes(rng.choices(b" \t\r\n", k=rng.randrange(4)))

    for _ in range(200):
        pieces = rng.choices(PIECES, k=rng.randrange(1, 12))
        inner = b",".join(gap() + piece + gap() for piece in pieces)
        array = gap() + b"[" + inner + b"]" + gap()
        wrapped = gap() + b"{" + gap() + b'"events"' + gap() + b":" + array + b"}" + gap()
        for body in (array, wrapped, wrapped.replace(b'"events"', b'"\\u0065vents"', 1)):
            cut = split_batch(body)
            assert [text for text, _ in cut] == pieces
            assert [value for _, value in cut] == [
                json.loads(piece, parse_int=float) for piece in pieces
            ]


def problems(body):
    refused = refusal(split_batch, body)
    assert (refused.status, refused.code) == (422, "invalid_request")
    return [detail.field for detail in refused.details]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        pytest.param(b"[]", ["events"], id="no_events"),
        pytest.param(b" [ ] \n", ["events"], id="no_events_and_white_space"),
        pytest.param(b'{"events":[]}', ["events"], id="no_events_in_an_object"),
        pytest.param(b"{}", ["events"], id="empty_object"),
        pytest.param(b'{"events":{}}', ["events"], id="events_is_an_object"),
        pytest.param(b'{"events":null}', ["events"], id="events_is_null"),
        pytest.param(b'{"events":[{}],"events":[{}]}', ["events"], id="given_twice"),
        pytest.param(b'{"events":1,"events":[{}]}', ["events"], id="given_twice_first_wrong"),
        pytest.param(b'{"events":[{}],"events":1}', ["events"], id="given_twice_last_wrong"),
        pytest.param(b'{"events":[{}],"a":1}', ["a"], id="unknown_member_after"),
        pytest.param(b'{"a":[{}],"b":1}', ["a", "b", "events"], id="every_problem_listed"),
        pytest.param(b'"events"', [""], id="string"),
        pytest.param(b"7", [""], id="number"),
        pytest.param(b"null", [""], id="null"),
    ],
)
def test_split_batch_reports_every_problem_of_its_shape(body, fields):
    assert problems(body) == fields


def test_split_batch_shortens_a_long_unknown_field():
    assert problems(b'{"events":[{}],"' + b"x" * 9_999 + b'":1}') == ["x" * 64]


def test_split_batch_accepts_up_to_1000_events():
    assert len(split_batch(b"[" + b",".join([b"{}"] * 1000) + b"]")) == 1000
    assert problems(b"[" + b",".join([b"{}"] * 1001) + b"]") == ["events"]


@pytest.mark.parametrize("body", [b"[{} {}]", b"[{},]", b"[,{}]", b"[{}", b"[{}]]", b"[{};{}]"])
def test_split_batch_refuses_a_malformed_array_as_not_json(body):
    assert refusal(split_batch, body).status == 400
