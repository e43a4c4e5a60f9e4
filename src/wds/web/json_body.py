"""Strict JSON in request bodies. Pure.

Bodies are read by RFC 8259 and no further: UTF-8 only, no NaN or Infinity, no trailing text.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NoReturn, TypeVar

from wds.domain.errors import Detail, Refusal, wrong_shape

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

Parsed = TypeVar("Parsed")

_EXACT_DIGITS = 18
"""Every integer of up to this many digits fits MongoDB's 64 bits."""


def reject_constant(constant: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python's decoder accepts otherwise: its `parse_constant`."""
    msg = f"{constant} is not JSON"
    raise ValueError(msg)


def _integer(digits: str) -> float:
    return int(digits) if len(digits) <= _EXACT_DIGITS else float(digits)


_DECODER = json.JSONDecoder(parse_constant=reject_constant, parse_int=_integer)


def parse_request(body: bytes) -> dict[str, Any]:
    """Parse an operator's request, a JSON object; integers of up to 18 digits are exact.

    Raises:
        Refusal: 400 if it is not JSON in UTF-8, 422 if it is not an object.
    """
    return require_object(parse_text(_DECODER.decode, body), "")


def parse_text(parse: Callable[[str], Parsed], body: bytes) -> Parsed:
    """Decode `body` and return the result of `parse`, which raises ValueError unless it is JSON.

    Raises:
        Refusal: 400 if `body` is not UTF-8, not JSON, or nested too deeply.
    """
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


def require_object(value: object, path: str) -> dict[str, Any]:
    """Return `value`, which is at `path` of the request, if it is a JSON object.

    Raises:
        Refusal: 422 if it is not.
    """
    if not isinstance(value, dict):
        raise wrong_shape(Detail(path, "must be a JSON object"))
    return value


def is_json(content_type: str) -> bool:
    """Tell whether a Content-Type header means JSON."""
    kind = media_type(content_type)
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )


def media_type(content_type: str) -> str:
    """Return the media type of a Content-Type header, in lower case, without parameters."""
    return content_type.partition(";")[0].strip().lower()
