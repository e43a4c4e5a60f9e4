"""When to try again: the retry schedule and the receiver's `Retry-After`. Pure.

The values come from the settings `WDS_BACKOFF` and `WDS_MAX_ATTEMPTS` (`config.py`), by way of
`Destination.backoff` and `Destination.max_attempts`. There is one destination, so these are the
settings of the process. The result is stored with the event as the
time at which it is due again. No process sleeps until then.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

RETRY_AFTER_CAP_S = 300.0
"""The longest delay that a downstream can ask for. A longer one is cut to this."""

_SECONDS = re.compile(r"[0-9]+")


def retry_after_s(value: str | None, now: datetime) -> float:
    """Return the seconds that a `Retry-After` header asks for; 0 if it is absent or malformed.

    Reads both forms of RFC 9110 section 10.2.3: a delay in seconds, or a date. Pass the `Date`
    header of the same answer as `now` if it has one, so that only the downstream's clock counts.
    The result lies between 0 and `RETRY_AFTER_CAP_S`.
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


def delay_s(schedule: Sequence[float], step: int, retry_after_s: float = 0.0) -> float:
    """Return the seconds to wait after the failure at `step` of the schedule (1 for the first).

    `schedule` lists the delays in order; past its end the last one repeats. `retry_after_s` may
    lengthen the delay and never shortens it.
    """
    return max(schedule[min(step, len(schedule)) - 1], retry_after_s)


def retry_in_s(
    schedule: Sequence[float], max_attempts: int, step: int, retry_after_s: float = 0.0
) -> float | None:
    """Return the seconds until the attempt after the failure at `step`.

    None if `step` was the last of `max_attempts`: the event has failed permanently.
    """
    return None if step >= max_attempts else delay_s(schedule, step, retry_after_s)
