"""The log lines and counts of each step of an event, and of what operators do to events.

Every line about one event has `event_id`, and every line about an attempt has `attempt` as well,
so that both can be followed through the logs of all processes. Lines about an operator's request
have `request_id`; the reason that the operator gives is not logged.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from wds.domain.deliveries import Outcome, Status
from wds.domain.errors import QueueFullError, StoreUnavailableError
from wds.domain.operator_actions import Action
from wds.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from wds.domain.deliveries import Claim, Claimed, Settlement
    from wds.domain.events import NewEvent, Receipt
    from wds.domain.operator_actions import BulkAction, Instruction

log = structlog.get_logger(__name__)

# -- ingest ----------------------------------------------------------------------------------


def acknowledged(events: Sequence[NewEvent], receipts: Sequence[Receipt]) -> None:
    """`events` are durable and their senders know it. `receipts` has one receipt for each."""
    repeated = 0
    for event, receipt in zip(events, receipts, strict=True):
        repeated += receipt.duplicate
        log.info(
            "received",
            event_id=receipt.id,
            event_type=event.event_type,
            bytes=len(event.payload),
            duplicate=receipt.duplicate,
        )
    metrics.EVENTS_RECEIVED.inc(len(receipts) - repeated)
    if repeated:
        metrics.EVENTS_REPEATED.inc(repeated)


@contextmanager
def unless_acknowledged(events: Sequence[NewEvent]) -> Iterator[None]:
    """Log the events that the block fails to store, and whether they may be stored all the same.

    The answer asks their sender to send them again.
    """
    try:
        yield
    except (StoreUnavailableError, QueueFullError) as error:
        stored = "no" if isinstance(error, QueueFullError) else "unknown"
        for event in events:
            log.warning("not_acknowledged", event_id=event.id, stored=stored)
        raise


# -- operators -------------------------------------------------------------------------------


def changed(event_id: str, instruction: Instruction) -> None:
    """An operator replayed or cancelled one event."""
    metrics.EVENTS_CHANGED.labels(instruction.action).inc()
    facts = {"by": instruction.by, "remote": instruction.remote}
    name = {Action.REPLAY: "replayed", Action.CANCEL: "cancelled"}[instruction.action]
    log.info(name, event_id=event_id, request_id=instruction.request_id, **facts)


def bulk_action_started(bulk_action: BulkAction) -> None:
    """An operator started to replay or cancel all events that match."""
    log.info(
        "bulk_action_begun",
        request_id=bulk_action.request_id,
        action=bulk_action.action,
        by=bulk_action.by,
        remote=bulk_action.remote,
        matched=bulk_action.matched,
    )


def bulk_action_stopped(bulk_action: BulkAction, remote: str) -> None:
    """An operator stopped a bulk action: the chunk under way is its last."""
    log.info(
        "bulk_action_stopped",
        request_id=bulk_action.request_id,
        action=bulk_action.action,
        remote=remote,
    )


# -- delivery --------------------------------------------------------------------------------


def bind(claim: Claim, facts: Mapping[str, str]) -> None:
    """Add the event's id, the attempt's number and `facts` to every later line of this context."""
    structlog.contextvars.bind_contextvars(event_id=claim.id, attempt=claim.attempt_number, **facts)


def claimed(result: Claimed) -> None:
    """A claim leased events, and buried those that had no attempt left or were cancelled.

    Cancelled events are not counted as failed.
    """
    metrics.CLAIMS.inc(len(result.claims))
    metrics.LEASES_RECOVERED.inc(result.recovered)
    metrics.ATTEMPTS.labels(Outcome.UNKNOWN).inc(result.recovered + len(result.lost_ids))
    metrics.DELIVERIES_FAILED.inc(len(result.exhausted_ids) + result.buried_unread)
    for claim in result.claims:
        if claim.recovered:
            log.warning("lease_recovered", event_id=claim.id, attempt=claim.attempt_number - 1)
    for event_id in result.exhausted_ids:
        lost = event_id in result.lost_ids
        cause = "its last attempt was lost" if lost else "the limit of attempts is lower now"
        log.warning("buried", event_id=event_id, cause=cause)
    for event_id in result.cancelled_ids:
        log.warning("cancelled_attempt_lost", event_id=event_id)


def not_deferred(claims: Sequence[Claim]) -> None:
    """Leases could not be released. They expire, and attempts that were never made are counted."""
    for claim in claims:
        log.warning("defer_failed", event_id=claim.id, attempt=claim.attempt_number)


def settled(settlement: Settlement, *, recorded: bool | None) -> None:
    """An attempt was made. Call it in the context that `bind` prepared.

    `recorded` is True if it was stored, False if another replica holds the lease by now, and None
    if the store did not confirm it.
    """
    attempt = settlement.attempt
    if attempt is None:
        return
    facts = {
        "status_code": attempt.status_code,
        "duration_ms": attempt.duration_ms,
        "error": attempt.error,
    }
    if recorded is None:
        log.error("outcome_not_recorded", **facts, consequence="will be sent again")
        return
    if not recorded:
        metrics.LEASES_LOST.inc()
        log.warning("lease_lost", **facts, consequence="another replica has the event")
        return
    metrics.ATTEMPTS.labels(attempt.outcome).inc()
    if attempt.attempt_number > 1:
        metrics.RETRY_ATTEMPTS.inc()
    if settlement.status is Status.DELIVERED:
        metrics.DELIVERIES_SUCCEEDED.inc()
    elif settlement.status is Status.FAILED_PERMANENTLY and not settlement.cancelled:
        metrics.DELIVERIES_FAILED.inc()
    retry_in_s = settlement.delay_s if settlement.status is Status.DELIVERING else None
    if settlement.cancelled:
        facts["cancelled"] = True
    log.info("attempt", **facts, status=settlement.status, retry_in_s=retry_in_s)
