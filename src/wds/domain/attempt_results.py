"""The results of an attempt to deliver an event, one type for each. Pure.

`AttemptResult` is recorded as an attempt; `NotSent` means that there was none. The types are
structs because one is made for each delivery.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias, assert_never

from msgspec import Struct

from wds.domain import retry_policy
from wds.domain.deliveries import Attempt, Outcome, Settlement, Status

if TYPE_CHECKING:
    from wds.domain.deliveries import Claim
    from wds.domain.destinations import Destination

MAX_ERROR_LENGTH = 300
"""Characters of an attempt's error text that are kept."""


class Phase(StrEnum):
    """The part of a request in which it failed."""

    LOOK_UP = "look-up"
    """Resolving the host's name."""
    CONNECT = "connect"
    """TCP. After a timeout: look-up, TCP or TLS, which the client does not time separately."""
    TLS_HANDSHAKE = "TLS handshake"
    ANSWER = "answer"
    """From the first byte of the request to the last byte of the answer."""


class _Result(Struct, frozen=True, kw_only=True):
    """The fields of every result.

    Attributes:
        sent_at: `time.monotonic()` when the request left; when the attempt began if there was no
            connection.
        duration_ms: from `sent_at` to the end of the attempt.
        status_code: of the answer; None if no answer began.
        response: the first KiB of the answer's body, undecodable bytes replaced; None if the body
            did not arrive whole.
        retry_after_s: seconds that the answer's `Retry-After` asks for; 0 without one.
    """

    sent_at: float
    duration_ms: int
    status_code: int | None = None
    response: str | None = None
    retry_after_s: float = 0.0


class Delivered(_Result, frozen=True, kw_only=True):
    """The receiver answered 2xx."""


class Rejected(_Result, frozen=True, kw_only=True):
    """The receiver answered with another status than 2xx. Redirects are not followed."""


class TimedOut(_Result, frozen=True, kw_only=True):
    """The attempt took longer than the destination's timeout.

    Attributes:
        phase: CONNECT or ANSWER.
        timeout_s: the destination's timeout.
    """

    phase: Phase
    timeout_s: float


class Unreachable(_Result, frozen=True, kw_only=True):
    """No connection could be made.

    Attributes:
        phase: LOOK_UP, CONNECT or TLS_HANDSHAKE.
        cause: the name of the exception's class.
        detail: its message, without the destination's URL.
    """

    phase: Phase
    cause: str
    detail: str


class BrokenAnswer(_Result, frozen=True, kw_only=True):
    """The connection broke after it was made, or what came back was not a whole HTTP answer.

    Attributes:
        cause: the name of the exception's class.
        detail: its message, without the destination's URL.
    """

    cause: str
    detail: str


AttemptResult: TypeAlias = Delivered | Rejected | TimedOut | Unreachable | BrokenAnswer
"""The result of one request, sent or not connected. Always recorded as an attempt."""


class NotSent(Struct, frozen=True):
    """No request left, so there is no attempt to record: the claim is deferred."""

    reason: str


def error_text(result: AttemptResult) -> str | None:
    """Return the error that is stored and logged with the attempt; None for a delivered event."""
    match result:
        case Delivered():
            return None
        case Rejected():
            return f"HTTP {result.status_code}"
        case TimedOut():
            return f"no complete answer within {result.timeout_s:g} s"
        case Unreachable() | BrokenAnswer():
            return f"{result.cause}: {result.detail}"[:MAX_ERROR_LENGTH]
        case _:  # pragma: no cover - mypy proves that no type is missing
            assert_never(result)


def settlement(claim: Claim, result: AttemptResult, destination: Destination) -> Settlement:
    """Return the settlement of `claim`: the attempt to record, and when the next is due, if any."""
    delivered = isinstance(result, Delivered)
    attempt = Attempt(
        attempt_number=claim.attempt_number,
        timestamp=claim.leased_at + timedelta(seconds=result.sent_at - claim.held_since),
        outcome=Outcome.SUCCESS if delivered else Outcome.FAILURE,
        status_code=result.status_code,
        duration_ms=result.duration_ms,
        error=error_text(result),
        response=result.response,
    )
    if delivered:
        return Settlement(claim, attempt, Status.DELIVERED)
    retry_in_s = retry_policy.retry_in_s(
        destination.backoff,
        destination.max_attempts,
        claim.schedule_step,
        result.retry_after_s,
    )
    if retry_in_s is None:
        return Settlement(claim, attempt, Status.FAILED_PERMANENTLY)
    return Settlement(claim, attempt, Status.DELIVERING, retry_in_s)
