"""What JSON writers do not know, in terms of what they do: for answers and log lines. Pure."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


def instant_text(instant: datetime) -> str:
    """Write an instant as ISO 8601 in UTC with milliseconds, such as 2026-03-01T12:00:00.250Z."""
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(value: object) -> object:
    """Return a value of a subclass, such as BSON's integers of 64 bits, as one of its base.

    Raises:
        TypeError: it is no number and no text of any class.
    """
    for base in (int, float):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, str):
        return "".join(value)
    msg = f"{type(value).__name__} is no JSON"
    raise TypeError(msg)
