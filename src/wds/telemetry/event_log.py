"""What is counted and logged of an event on its way: a line for each step, with the event's id.

And of what operators do to events, with the request's id; why they do it is not logged.

Every line that concerns one event has `event_id`; every line that concerns an attempt has
`attempt` as well, so that both can be followed through the logs of all processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from wds.domain.deliveries import Outcome, Status
from wds.domain.errors import QueueFullError, StoreUnavailableError
from wds.domain.operator_actions import Action
from wds.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wds.domain.deliveries import Claim, Claimed, Settlement
    from wds.domain.events import NewEvent, Receipt
    from wds.domain.operator_actions import BulkAction, Instruction

log = structlog.get_logger(__name__)

# -- ingest ----------------------------------------------------------------------------------


def acknowledged(events: Sequence[NewEvent], receipts: Sequence[Receipt]) -> None:
    """The senders of `events` are told that they are durable; one receipt for each."""
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


class UnlessAcknowledged:
    """Logs the ids of events whose sender is told to come back, and whether they are stored.

    A context manager around the storing of `events`.
    """

    def __init__(self, events: Sequence[NewEvent]) -> None:
        """Take the events of one request."""
        self._events = events

    def __enter__(self) -> None:
        """Say nothing yet."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Say what became of them, if it is not known that they are stored."""
        if isinstance(error, (StoreUnavailableError, QueueFullError)):
            stored = "no" if isinstance(error, QueueFullError) else "unknown"
            for event in self._events:
                log.warning("not_acknowledged", event_id=event.id, stored=stored)


# -- operators -------------------------------------------------------------------------------


def changed(event_id: str, instruction: Instruction) -> None:
    """An operator replayed or cancelled one event."""
    metrics.EVENTS_CHANGED.labels(instruction.action).inc()
    facts = {"by": instruction.by, "remote": instruction.remote}
    say = {Action.REPLAY: "replayed", Action.CANCEL: "cancelled"}[instruction.action]
    log.info(say, event_id=event_id, request_id=instruction.request_id, **facts)


def bulk_action_begun(begun: BulkAction) -> None:
    """An operator began to replay or cancel all events that match."""
    log.info(
        "bulk_action_begun",
        request_id=begun.request_id,
        action=begun.action,
        by=begun.by,
        remote=begun.remote,
        matched=begun.matched,
    )


def bulk_action_stopped(stopped: BulkAction, remote: str) -> None:
    """An operator asked for no further changes."""
    log.info(
        "bulk_action_stopped", request_id=stopped.request_id, action=stopped.action, remote=remote
    )


# -- delivery --------------------------------------------------------------------------------


def bind(claim: Claim, facts: Mapping[str, str]) -> None:
    """Put the claim's names and `facts` on every line that this context logs from here on."""
    structlog.contextvars.bind_contextvars(event_id=claim.id, attempt=claim.attempt_number, **facts)


def claimed(claimed: Claimed) -> None:
    """Leases were taken, some perhaps from the dead; events without attempts left were buried.

    A cancelled event is none that failed, however its last attempt went.
    """
    metrics.CLAIMS.inc(len(claimed.claims))
    metrics.LEASES_RECOVERED.inc(claimed.recovered)
    metrics.ATTEMPTS.labels(Outcome.UNKNOWN).inc(claimed.recovered + claimed.lost)
    metrics.DELIVERIES_FAILED.inc(len(claimed.exhausted_ids))
    for claim in claimed.claims:
        if claim.recovered:
            log.warning("lease_recovered", event_id=claim.id, attempt=claim.attempt_number - 1)
    for event_id in claimed.exhausted_ids:
        log.warning("buried", event_id=event_id, cause="its last attempt was lost")
    for event_id in claimed.cancelled_ids:
        log.warning("cancelled_attempt_lost", event_id=event_id)


def not_deferred(claims: Sequence[Claim]) -> None:
    """Leases could not be returned; they will expire, with an attempt that was never made."""
    for claim in claims:
        log.warning("defer_failed", event_id=claim.id, attempt=claim.attempt_number)


def settled(settlement: Settlement, *, recorded: bool | None) -> None:
    """An attempt was recorded; or refused, the lease having passed on; None: it is not known.

    In the context that `bind` prepared.
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
