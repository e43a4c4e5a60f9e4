"""What wds reads out of a body: JSON or a form, an object, of which type, under which key. Pure.

The bytes themselves are never changed. JSON is read by RFC 8259 and no further: no NaN, no
second encoding, no trailing text. Numbers of any length are legitimate, because nothing here needs
their value.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qsl

import msgspec

from wds.domain.errors import Detail, Refusal
from wds.domain.events import MAX_BATCH, MAX_LABEL, is_label

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

MAX_FORM_FIELDS = 1000
_WHITESPACE = " \t\n\r"


def _not_json(constant: str) -> NoReturn:
    msg = f"{constant} is not JSON"
    raise ValueError(msg)


def _integer(digits: str) -> float:
    return int(digits) if len(digits) <= _EXACT_DIGITS else float(digits)


_EXACT_DIGITS = 18
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
"""Leaves the values as they are written, which it checks nevertheless."""
_VALUE = msgspec.json.Decoder()
_DECODER = json.JSONDecoder(parse_constant=_not_json, parse_int=float)
_REQUEST_DECODER = json.JSONDecoder(parse_constant=_not_json, parse_int=_integer)


def members(body: bytes, names: Collection[str]) -> dict[str, Any]:
    """Return those members of a payload, one JSON object, that `names` has and that are there.

    All of it is checked to be JSON, but nothing is made of what nobody asked for: that takes twice
    as long, and many times the memory. A repeated name counts with its last value.

    Raises:
        Refusal: 400 if it is not JSON in UTF-8, 422 if it is JSON but not an object.
    """
    try:
        found = _MEMBERS.decode(body.decode("utf-8"))
        return {name: _VALUE.decode(found[name]) for name in names if name in found}
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        # It reads less: no lone surrogates, no numbers beyond a float. And it says less.
        whole = _object(_DECODER, body)
        return {name: whole[name] for name in names if name in whole}


def parse_request(body: bytes) -> dict[str, Any]:
    """Parse an operator's request like a payload, with integers of up to 18 digits exact."""
    return _object(_REQUEST_DECODER, body)


def _object(decoder: json.JSONDecoder, body: bytes) -> dict[str, Any]:
    return checked_object(_guard(decoder.decode, body), "")


def split_batch(body: bytes) -> list[tuple[bytes, Any]]:
    """Cut a batch into its elements: the exact bytes of each, and each parsed.

    `body` is a JSON array, or `{"events": [...]}` with nothing beside it. `checked_object` says
    which elements are events.

    Raises:
        Refusal: 400 if it is not JSON, 422 listing every problem of its shape.
    """
    items = _guard(_batch_items, body)
    if not items:
        raise _wrong_shape(Detail("events", "must hold at least one event"))
    if len(items) > MAX_BATCH:
        raise _wrong_shape(Detail("events", f"must hold at most {MAX_BATCH} events"))
    return [(text.encode(), value) for text, value in items]


def checked_object(value: object, path: str) -> dict[str, Any]:
    """Return `value`, which is at `path` of the request, if it is a JSON object.

    Raises:
        Refusal: 422 if it is not.
    """
    if not isinstance(value, dict):
        raise _wrong_shape(Detail(path, "must be a JSON object"))
    return value


def event_type(candidates: Iterable[object]) -> str | None:
    """Return the first candidate that can name a type.

    Payloads belong to their senders, so a `type` that is not a label is no error; it is
    simply not ours.
    """
    return next((str(each) for each in candidates if is_label(each)), None)


def idempotency_key(candidates: Iterable[object], path: str = "") -> str | None:
    """Return the first candidate that is there; `path` prefixes the field's name in the refusal.

    Raises:
        Refusal: 422 if it is no label; ignoring it would lose the guard.
    """
    key = next((each for each in candidates if each is not None), None)
    if key is None:
        return None
    if not is_label(key):
        text = f"must be 1 to {MAX_LABEL} printable characters"
        raise _wrong_shape(Detail(f"{path}idempotency_key", text))
    return str(key)


def is_json(content_type: str) -> bool:
    """Tell whether a Content-Type header means JSON."""
    kind = _kind(content_type)
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )


def is_form(content_type: str) -> bool:
    """Tell whether a Content-Type header means the form of a web page."""
    return _kind(content_type) == "application/x-www-form-urlencoded"


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def form_members(body: bytes, names: Collection[str]) -> dict[str, Any]:
    """Return those fields of a form that `names` has, or of the JSON object in its field `payload`.

    That is how GitHub and Slack put JSON into forms.

    Raises:
        Refusal: 400 if it is no form in UTF-8, or `payload` is not JSON; 422 if it is no object.
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
        return members(fields["payload"].encode(), names)
    return {name: fields[name] for name in names if name in fields}


def _guard(parse: Any, body: bytes) -> Any:  # noqa: ANN401 - whatever JSON there is
    try:
        return parse(body.decode("utf-8"))
    except UnicodeDecodeError:
        reason = "the body is not UTF-8"
    except RecursionError:
        reason = "the body is nested too deeply"
    except json.JSONDecodeError as error:
        reason = f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
    except ValueError as error:
        reason = f"the body is not JSON: {error}"
    raise Refusal(400, "invalid_json", reason)


def _batch_items(text: str) -> list[tuple[str, Any]]:
    start = _skip(text, 0)
    if text[start : start + 1] == "[":
        items, end = _array(text, start)
        _expect_end(text, end)
        return items
    whole = _DECODER.decode(text)
    if not isinstance(whole, dict):
        raise _wrong_shape(Detail("", 'must be a JSON array or {"events": [...]}'))
    return _events_member(text, start, whole)


def _events_member(text: str, start: int, whole: dict[str, Any]) -> list[tuple[str, Any]]:
    """Walk the members of the object at `start`, known to be valid, to the array `events`."""
    wrong = [Detail(key[:64], "is not a field of a batch") for key in whole if key != "events"]
    if not isinstance(whole.get("events"), list):
        wrong.append(Detail("events", "must be an array of objects"))
    position = _skip(text, start + 1)
    members: list[int] = []
    while not wrong and text[position] != "}":
        _, position = _DECODER.raw_decode(text, position)
        position = _skip(text, _skip(text, position) + 1)
        members.append(position)
        _, position = _DECODER.raw_decode(text, position)
        position = _skip(text, position)
        if text[position] == ",":
            position = _skip(text, position + 1)
    if len(members) > 1:
        wrong.append(Detail("events", "must be given once"))
    if wrong:
        raise _wrong_shape(*wrong)
    return _array(text, members[0])[0]


def _array(text: str, start: int) -> tuple[list[tuple[str, Any]], int]:
    """Return the elements of the array at `start`, each as written and parsed, and its end."""
    items: list[tuple[str, Any]] = []
    position = _skip(text, start + 1)
    if text[position : position + 1] == "]":
        return items, position + 1
    while True:
        value, end = _DECODER.raw_decode(text, position)
        items.append((text[position:end], value))
        position = _skip(text, end)
        separator = text[position : position + 1]
        if separator == "]":
            return items, position + 1
        if separator != ",":
            raise _not_json_at(text, position, "Expecting ',' delimiter")
        position = _skip(text, position + 1)


def _expect_end(text: str, position: int) -> None:
    if _skip(text, position) != len(text):
        raise _not_json_at(text, position, "Extra data")


def _not_json_at(text: str, position: int, reason: str) -> json.JSONDecodeError:
    return json.JSONDecodeError(reason, text, position)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _WHITESPACE:
        position += 1
    return position


def _wrong_shape(*details: Detail) -> Refusal:
    return Refusal(422, "invalid_request", "the request has the wrong shape", details)
