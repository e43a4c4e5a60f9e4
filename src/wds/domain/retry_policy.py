"""When to try again: the retry schedule and the downstream's `Retry-After`. Pure.

This is the durable kind of retry. Its result is stored as the event's next due time; nobody
sleeps for it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

RETRY_AFTER_CAP_S = 300.0
"""The most that a downstream can lengthen a delay to; a longer wish counts as this."""

_SECONDS = re.compile(r"[0-9]+")


def retry_after_s(value: str | None, now: datetime) -> float:
    """Return the seconds that a `Retry-After` header asks for, 0 for none or nonsense.

    Both forms of RFC 9110 section 10.2.3: delay in seconds, or a date. `now` should come from
    the same answer's `Date` header where there is one, so that only the downstream's clock
    counts. Never negative, never more than `RETRY_AFTER_CAP_S`.
    """
    if value is None:
        return 0.0
    text = value.strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), RETRY_AFTER_CAP_S)
    instant = http_date(text)
    if instant is None:
        return 0.0
    return min(max((instant - now).total_seconds(), 0.0), RETRY_AFTER_CAP_S)


def http_date(value: str) -> datetime | None:
    """Parse an HTTP date (RFC 9110 section 5.6.7) to an aware instant, None if it is not one."""
    try:
        instant = parsedate_to_datetime(value)
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def delay_s(schedule: Sequence[float], attempt_number: int, asked_s: float = 0.0) -> float:
    """Return the seconds to wait after failure `attempt_number` (1 for the first).

    `schedule` lists the delays in order; past its end the last one repeats. `asked_s`, from
    `retry_after_s`, may lengthen the delay and never shortens it.
    """
    return max(schedule[min(attempt_number, len(schedule)) - 1], asked_s)
