"""Formatting payloads: the JSON stays the same, and invisible characters are escaped."""

from __future__ import annotations

import json
import re
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from wds.console import json_view
from wds.console.json_view import MAX_INDENT_DEPTH, escape_invisible, tokenize_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def formatted(text, limit=10**6):
    tokens, complete = tokenize_json(text, limit)
    assert complete
    return "".join(token.text for token in tokens)


@settings(suppress_health_check=[HealthCheck.too_slow])  # judges the machine
@given(VALUES, st.booleans())
def test_tokenize_json_changes_white_space_only(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert json.loads(formatted(text)) == value
    indented = json.dumps(value, ensure_ascii=ascii_only, indent=2)
    assert formatted(text) == escape_invisible(indented)


@pytest.mark.parametrize(
    "text",
    ["1e400", "0.10", "123456789012345678901234567890", "-0", r'"\u00e9\/"', '{"a":1,"a":2}'],
)
def test_tokenize_json_keeps_numbers_keys_and_escapes_as_written(text):
    assert re.sub(r"\s", "", formatted(text)) == text


def test_tokenize_json_gives_each_token_its_kind():
    tokens, _ = tokenize_json('{"k":["s",1,true,null]}', 1000)
    kinds = [(token.kind, token.text.strip()) for token in tokens if token.text.strip()]
    assert [kind for kind, _ in kinds if kind != "punctuation"] == [
        "key",
        "string",
        "number",
        "literal",
        "literal",
    ]


@pytest.mark.parametrize("text", ["", "{", "nope", '{"a":1} x', "[" * 100_000, "a=1&b=2"])
def test_tokenize_json_raises_for_text_that_is_not_json(text):
    with pytest.raises(ValueError, match=r"Expecting|Extra|nested"):
        tokenize_json(text, 1000)


def test_tokenize_json_cuts_at_the_limit_and_says_so():
    tokens, complete = tokenize_json(json.dumps(["x" * 50] * 1000), 500)
    assert not complete
    assert 400 < sum(len(token.text) for token in tokens) <= 510


def test_tokenize_json_cuts_within_one_long_string():
    tokens, complete = tokenize_json(json.dumps("x" * 100_000), 1000)
    assert not complete
    assert sum(len(token.text) for token in tokens) == 1000


def test_tokenize_json_of_deep_nesting_stays_small():
    depth = 400
    text = "[" * depth + "]" * depth
    assert len(formatted(text)) < 2 * depth * (MAX_INDENT_DEPTH * 2 + 4)


def test_tokenize_json_formats_no_more_than_it_returns(monkeypatch):
    """Also of JSON that is all punctuation, which once took a second per megabyte."""
    read = 0
    indent = json_view._indent

    def counting_indent(text):
        nonlocal read
        for piece in indent(text):
            read += 1
            yield piece

    monkeypatch.setattr(json_view, "_indent", counting_indent)
    tokens, complete = tokenize_json("[" + "[]," * 100_000 + "[]]", 500)
    assert not complete
    assert "".join(token.text for token in tokens) == ("[\n" + "  [],\n" * 100)[:500]
    assert read < 2000


@given(st.text())
def test_escape_invisible_leaves_no_invisible_character(text):
    shown = escape_invisible(text)
    assert all(each in "\n\t" or unicodedata.category(each)[0] != "C" for each in shown)
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize(
    ("hidden", "shown"),
    [
        ("\x00", r"\u0000"),
        ("\u202e", r"\u202e"),
        ("\u2066", r"\u2066"),
        ("\ufeff", r"\ufeff"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\udb40\udc41"),
        ("\r", r"\u000d"),
    ],
)
def test_escape_invisible_writes_json_escapes(hidden, shown):
    assert escape_invisible(f"a{hidden}b") == f"a{shown}b"
