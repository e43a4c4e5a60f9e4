"""Payloads laid out for reading: the same JSON, and nothing that hides or reorders text."""

from __future__ import annotations

import json
import re
import unicodedata

import pytest
from hypothesis import given, strategies as st

from wds.console.json_view import DEEPEST_INDENT, _laid_out, pretty, visible

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def laid_out(text, limit=10**6):
    tokens, whole = pretty(text, limit)
    assert whole
    return "".join(token.text for token in tokens)


@given(VALUES, st.booleans())
def test_layout_changes_white_space_only(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert json.loads(laid_out(text)) == value
    assert laid_out(text) == visible(json.dumps(value, ensure_ascii=ascii_only, indent=2))


@pytest.mark.parametrize(
    "text",
    ["1e400", "0.10", "123456789012345678901234567890", "-0", r'"\u00e9\/"', '{"a":1,"a":2}'],
)
def test_every_number_key_and_escape_stays_as_it_was_written(text):
    assert re.sub(r"\s", "", laid_out(text)) == text


def test_tokens_say_what_they_are():
    tokens, _ = pretty('{"k":["s",1,true,null]}', 1000)
    kinds = [(token.kind, token.text.strip()) for token in tokens if token.text.strip()]
    assert [kind for kind, _ in kinds if kind != "mark"] == [
        "key",
        "string",
        "number",
        "word",
        "word",
    ]


@pytest.mark.parametrize("text", ["", "{", "nope", '{"a":1} x', "[" * 100_000, "a=1&b=2"])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ValueError, match=r"Expecting|Extra|nested"):
        pretty(text, 1000)


def test_what_is_long_is_cut_and_said_to_be():
    tokens, whole = pretty(json.dumps(["x" * 50] * 1000), 500)
    assert not whole
    assert 400 < sum(len(token.text) for token in tokens) <= 510


def test_one_long_string_is_cut_too():
    tokens, whole = pretty(json.dumps("x" * 100_000), 1000)
    assert not whole
    assert sum(len(token.text) for token in tokens) == 1000


def test_depth_does_not_multiply_the_size():
    depth = 400
    text = "[" * depth + "]" * depth
    assert len(laid_out(text)) < 2 * depth * (DEEPEST_INDENT * 2 + 4)


def test_of_what_is_long_no_more_is_laid_out_than_is_shown(monkeypatch):
    """Not even of JSON of nothing but marks, which took a second a megabyte."""
    read = 0

    def counted(text):
        nonlocal read
        for piece in _laid_out(text):
            read += 1
            yield piece

    monkeypatch.setattr("wds.console.json_view._laid_out", counted)
    tokens, whole = pretty("[" + "[]," * 100_000 + "[]]", 500)
    assert not whole
    assert "".join(token.text for token in tokens) == ("[\n" + "  [],\n" * 100)[:500]
    assert read < 2000


@given(st.text())
def test_whatever_shows_nothing_is_written_out(text):
    shown = visible(text)
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
def test_a_character_that_hides_is_named(hidden, shown):
    assert visible(f"a{hidden}b") == f"a{shown}b"
