"""Text of strangers made fit to be looked at: JSON indented, invisible characters shown. Pure.

JSON is laid out from its own text, token by token, so that no number, repeated key or escape looks
different from what was received; only white space between tokens changes. What comes out is plain
text: escaping it for a page is the template's work.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

INDENT = 2
DEEPEST_INDENT = 32
"""Levels after which indentation stops growing."""

MOST_MARKS = 4096
"""Characters of marks and white space that become one token."""

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_KINDS = {'"': "string", "t": "word", "f": "word", "n": "word"}


class Token(NamedTuple):
    """A run of text, and what it is: mark, key, string, number or word."""

    kind: str
    text: str


def pretty(text: str, limit: int) -> tuple[list[Token], bool]:
    """Lay out JSON with indentation; stop once `limit` characters are reached.

    True with the tokens if all of it is there.

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
    for kind, piece in _merged(_laid_out(text)):
        shown = visible(piece[: limit - length])
        tokens.append(Token(kind, shown))
        length += len(piece)
        if length > limit:
            return tokens, False
    return tokens, True


def _laid_out(text: str) -> Iterator[tuple[str, str]]:
    depth = 0
    found = (match.group() for match in _TOKEN.finditer(text))
    piece = next(found, None)
    while piece is not None:
        following = next(found, None)
        if piece in "{[" and following is not None and following in "}]":
            yield "mark", piece + following
            following = next(found, None)
        elif piece in "{[":
            depth += 1
            yield "mark", piece + _line(depth)
        elif piece in "}]":
            depth -= 1
            yield "mark", _line(depth) + piece
        elif piece == ",":
            yield "mark", piece + _line(depth)
        elif piece == ":":
            yield "mark", ": "
        else:
            kind = "key" if following == ":" else _KINDS.get(piece[0], "number")
            yield kind, piece
        piece = following


def _merged(pieces: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Join marks that follow each other: fewer elements on the page.

    Not without end, or JSON of nothing but marks would be laid out whole to show its beginning.
    """
    marks = ""
    for kind, piece in pieces:
        if kind == "mark":
            marks += piece
        if marks and (kind != "mark" or len(marks) >= MOST_MARKS):
            yield "mark", marks
            marks = ""
        if kind != "mark":
            yield kind, piece
    if marks:
        yield "mark", marks


def _line(depth: int) -> str:
    return "\n" + " " * INDENT * min(depth, DEEPEST_INDENT)


def visible(text: str) -> str:
    r"""Write characters that show nothing or reorder their neighbours as JSON's `\u` escapes.

    Controls, formats such as the bidirectional overrides, lone surrogates, unassigned ones; line
    ends and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(each if _shows(each) else _escaped(each) for each in text)


def _shows(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character)[0] != "C"


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4))
