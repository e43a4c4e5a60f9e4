"""Instants as text, and `json_default`, by which JSON encoders write BSON's numbers and text."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


def instant_text(instant: datetime) -> str:
    """Write an instant as ISO 8601 in UTC with milliseconds, such as 2026-03-01T12:00:00.250Z."""
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def json_default(value: object) -> object:
    """Return an instance of a subclass of int, float or str as the built-in type itself.

    JSON encoders call it for types that they do not know, such as BSON's `Int64`.

    Raises:
        TypeError: `value` is neither a number nor text.
    """
    for base in (int, float):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, str):
        return "".join(value)
    msg = f"{type(value).__name__} cannot be written as JSON"
    raise TypeError(msg)
