"""Reading a sender's body: selected fields, event type, idempotency key. Pure.

A body is a JSON object, a form, or a batch of objects. Its bytes are never changed. JSON is read
strictly, as `web.json_body` describes, but numbers of any length are legitimate, because wds does
not use their values.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import msgspec

from wds.domain.errors import Detail, Refusal, wrong_shape
from wds.domain.events import MAX_BATCH, MAX_LABEL, is_label
from wds.web.json_body import media_type, parse_text, reject_constant, require_object

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

MAX_FORM_FIELDS = 1000
_WHITESPACE = " \t\n\r"

_RAW_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
"""Checks a whole object and leaves its values as text."""
_VALUE = msgspec.json.Decoder()
_DECODER = json.JSONDecoder(parse_constant=reject_constant, parse_int=float)


def read_fields(body: bytes, names: Collection[str]) -> dict[str, Any]:
    """Return those top-level fields of a JSON object that `names` lists and the object has.

    All of the body is checked to be JSON, but only these values become Python objects: converting
    all of them takes twice the time and many times the memory. Of a repeated name the last value
    counts.

    Raises:
        Refusal: 400 if it is not JSON in UTF-8, 422 if it is JSON but not an object.
    """
    try:
        raw = _RAW_FIELDS.decode(body.decode("utf-8"))
        return {name: _VALUE.decode(raw[name]) for name in names if name in raw}
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        # msgspec rejects lone surrogates and numbers beyond a float, which are JSON, and its
        # messages have no line and column.
        whole = require_object(parse_text(_DECODER.decode, body), "")
        return {name: whole[name] for name in names if name in whole}


def read_form_fields(body: bytes, names: Collection[str]) -> dict[str, Any]:
    """Return those fields of a form that `names` lists and the form has.

    A form with a field `payload` stands for the JSON object in that field, as GitHub and Slack
    send it.

    Raises:
        Refusal: 400 if it is not a form in UTF-8, or `payload` is not JSON; 422 if `payload` is
            not an object.
    """
    fields: dict[str, Any] = {}
    with suppress(ValueError):
        fields = dict(
            parse_qsl(
                body.decode("utf-8"),
                keep_blank_values=True,
                strict_parsing=True,
                errors="strict",
                max_num_fields=MAX_FORM_FIELDS,
            )
        )
    if not fields:
        text = f"the body is not a form of 1 to {MAX_FORM_FIELDS} fields in UTF-8"
        raise Refusal(400, "invalid_form", text)
    if "payload" in fields:
        return read_fields(fields["payload"].encode(), names)
    return {name: fields[name] for name in names if name in fields}


def split_batch(body: bytes) -> list[tuple[bytes, Any]]:
    """Split a batch into its elements; return the exact bytes of each and its parsed value.

    `body` is a JSON array, or `{"events": [...]}` without other fields. The elements may be any
    JSON; the caller checks with `require_object` that each is an object.

    Raises:
        Refusal: 400 if it is not JSON, 422 listing every problem of its shape.
    """
    items = parse_text(_batch_items, body)
    if not items:
        raise wrong_shape(Detail("events", "must hold at least one event"))
    if len(items) > MAX_BATCH:
        raise wrong_shape(Detail("events", f"must hold at most {MAX_BATCH} events"))
    return [(text.encode(), value) for text, value in items]


def first_event_type(candidates: Iterable[object]) -> str | None:
    """Return the first candidate that is a label; None without one.

    A candidate that is not a label is not an error: payloads belong to their senders, and a field
    `type` may mean something else there.
    """
    return next((str(each) for each in candidates if is_label(each)), None)


def first_idempotency_key(candidates: Iterable[object], path: str = "") -> str | None:
    """Return the first candidate that is not None; `path` prefixes the field in the refusal.

    Raises:
        Refusal: 422 if it is not a label. Ignoring it would store a repeat as a new event.
    """
    key = next((each for each in candidates if each is not None), None)
    if key is None:
        return None
    if not is_label(key):
        text = f"must be 1 to {MAX_LABEL} printable characters"
        raise wrong_shape(Detail(f"{path}idempotency_key", text))
    return str(key)


def is_form(content_type: str) -> bool:
    """Tell whether a Content-Type header means a form (`application/x-www-form-urlencoded`)."""
    return media_type(content_type) == "application/x-www-form-urlencoded"


def _batch_items(text: str) -> list[tuple[str, Any]]:
    start = _skip_whitespace(text, 0)
    if text[start : start + 1] == "[":
        items, end = _array(text, start)
        _expect_end(text, end)
        return items
    whole = _DECODER.decode(text)
    if not isinstance(whole, dict):
        raise wrong_shape(Detail("", 'must be a JSON array or {"events": [...]}'))
    return _events_array(text, start, whole)


def _events_array(text: str, start: int, whole: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the elements of the array `events` of the object at `start`, which is valid JSON."""
    problems = [Detail(key[:64], "is not a field of a batch") for key in whole if key != "events"]
    if not isinstance(whole.get("events"), list):
        problems.append(Detail("events", "must be an array of objects"))
    position = _skip_whitespace(text, start + 1)
    starts: list[int] = []
    while not problems and text[position] != "}":
        _, position = _DECODER.raw_decode(text, position)
        position = _skip_whitespace(text, _skip_whitespace(text, position) + 1)
        starts.append(position)
        _, position = _DECODER.raw_decode(text, position)
        position = _skip_whitespace(text, position)
        if text[position] == ",":
            position = _skip_whitespace(text, position + 1)
    if len(starts) > 1:
        problems.append(Detail("events", "must be given once"))
    if problems:
        raise wrong_shape(*problems)
    return _array(text, starts[0])[0]


def _array(text: str, start: int) -> tuple[list[tuple[str, Any]], int]:
    """Return the elements of the array at `start`, each as text and parsed, and the array's end."""
    items: list[tuple[str, Any]] = []
    position = _skip_whitespace(text, start + 1)
    if text[position : position + 1] == "]":
        return items, position + 1
    while True:
        value, end = _DECODER.raw_decode(text, position)
        items.append((text[position:end], value))
        position = _skip_whitespace(text, end)
        separator = text[position : position + 1]
        if separator == "]":
            return items, position + 1
        if separator != ",":
            raise _not_json_at(text, position, "Expecting ',' delimiter")
        position = _skip_whitespace(text, position + 1)


def _expect_end(text: str, position: int) -> None:
    if _skip_whitespace(text, position) != len(text):
        raise _not_json_at(text, position, "Extra data")


def _not_json_at(text: str, position: int, reason: str) -> json.JSONDecodeError:
    return json.JSONDecodeError(reason, text, position)


def _skip_whitespace(text: str, position: int) -> int:
    while position < len(text) and text[position] in _WHITESPACE:
        position += 1
    return position
