"""Formats senders' text for people: JSON indented, invisible characters escaped. Pure.

JSON is formatted from its own text, token by token. So every number, repeated key and escape
looks as it was received; only white space between tokens changes. The result is plain text:
the templates escape it for HTML.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

INDENT = 2
MAX_INDENT_DEPTH = 32
"""Levels after which indentation stops growing."""
MAX_PUNCTUATION = 4096
"""Characters of punctuation and white space that become one token."""

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_KINDS = {'"': "string", "t": "literal", "f": "literal", "n": "literal"}


class Token(NamedTuple):
    """A run of text and its kind: punctuation, key, string, number or literal (true, null …)."""

    kind: str
    text: str


def tokenize_json(text: str, limit: int) -> tuple[list[Token], bool]:
    """Format JSON with indentation, as tokens, up to `limit` characters.

    Returns the tokens and whether they are complete.

    Raises:
        ValueError: `text` is not JSON.
    """
    try:
        json.loads(text, parse_int=float)
    except RecursionError:
        msg = "nested too deeply"
        raise ValueError(msg) from None
    tokens: list[Token] = []
    length = 0
    for kind, piece in _merge_punctuation(_indent(text)):
        tokens.append(Token(kind, escape_invisible(piece[: limit - length])))
        length += len(piece)
        if length > limit:
            return tokens, False
    return tokens, True


def _indent(text: str) -> Iterator[tuple[str, str]]:
    depth = 0
    pieces = (match.group() for match in _TOKEN.finditer(text))
    piece = next(pieces, None)
    while piece is not None:
        following = next(pieces, None)
        if piece in "{[" and following is not None and following in "}]":
            yield "punctuation", piece + following
            following = next(pieces, None)
        elif piece in "{[":
            depth += 1
            yield "punctuation", piece + _line_break(depth)
        elif piece in "}]":
            depth -= 1
            yield "punctuation", _line_break(depth) + piece
        elif piece == ",":
            yield "punctuation", piece + _line_break(depth)
        elif piece == ":":
            yield "punctuation", ": "
        else:
            kind = "key" if following == ":" else _KINDS.get(piece[0], "number")
            yield kind, piece
        piece = following


def _merge_punctuation(pieces: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Join consecutive punctuation, so that the page has fewer elements.

    At most `MAX_PUNCTUATION` at once: otherwise JSON that is all punctuation would be formatted
    completely to show its beginning.
    """
    pending = ""
    for kind, piece in pieces:
        if kind == "punctuation":
            pending += piece
        if pending and (kind != "punctuation" or len(pending) >= MAX_PUNCTUATION):
            yield "punctuation", pending
            pending = ""
        if kind != "punctuation":
            yield kind, piece
    if pending:
        yield "punctuation", pending


def _line_break(depth: int) -> str:
    return "\n" + " " * INDENT * min(depth, MAX_INDENT_DEPTH)


def escape_invisible(text: str) -> str:
    r"""Replace characters that are invisible or reorder their neighbours by JSON's `\u` escapes.

    Those are controls, format characters such as bidirectional overrides, lone surrogates and
    unassigned code points. Line feeds and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(each if _is_visible(each) else _escape(each) for each in text)


def _is_visible(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character)[0] != "C"


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))
