"""Replay and cancel for operators, with one set of rules for the HTTP API and the console.

Every request has an id. A request that is repeated under its id changes nothing twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from wds.domain.errors import Detail, Refusal, StoreUnavailableError
from wds.domain.event_filter import read_filter
from wds.domain.operator_actions import Action, Verdict, affected_events
from wds.storage import event_queries
from wds.telemetry import event_log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from datetime import datetime

    from wds.domain.event_filter import EventFilter
    from wds.domain.operator_actions import BulkAction, Instruction
    from wds.storage.bulk_actions import ActionResult, BulkActions
    from wds.storage.event_reader import EventReader
    from wds.storage.rollups import Rollups

log = structlog.get_logger(__name__)

VERDICT_MESSAGES: Mapping[Verdict, tuple[str, str]] = {
    Verdict.LEASED: ("in_delivery", "an attempt is under way; replay it when that is over"),
    Verdict.WAITING: ("already_waiting", "it is already waiting and has all its attempts left"),
    Verdict.FINAL: ("already_final", "the event is final; there is nothing to cancel"),
    Verdict.CANCELLING: ("already_cancelled", "it ends with the attempt that is under way"),
    Verdict.CONFLICT: (
        "idempotency_conflict",
        "this request id belongs to another action on the event; use another one",
    ),
    Verdict.FULL: ("no_room", "its payload and past attempts leave no room for further ones"),
}
"""Verdict -> code and message of the 409. Other verdicts are not refused."""


class ActionService:
    """Carries out replays and cancels, of one event at once or of many as a bulk action."""

    def __init__(
        self,
        bulk_actions: BulkActions,
        reader: EventReader,
        rollups: Rollups,
        *,
        now: Callable[[], Awaitable[datetime]],
        rate_limit: float,
        wake: Callable[[], None],
    ) -> None:
        """Change events by `bulk_actions` and count them by `reader` or `rollups`.

        `now` returns the database's time, `rate_limit` is in requests per second, and `wake` is
        called when there is a bulk action to carry out.
        """
        self._bulk_actions = bulk_actions
        self._reader = reader
        self._rollups = rollups
        self._now = now
        self._wake = wake
        # Half of the limit is left for new events.
        self.default_per_second = rate_limit / 2 or None

    async def apply(self, event_id: str, instruction: Instruction) -> ActionResult:
        """Carry out an instruction on one event.

        Raises:
            Refusal: 404 if there is no such event, 409 if there is nothing to do.
        """
        result = await self._bulk_actions.apply(event_id, instruction)
        if result is None:
            raise Refusal(404, "not_found", "no event has this id")
        if result.verdict in VERDICT_MESSAGES:
            raise Refusal(409, *VERDICT_MESSAGES[result.verdict])
        if result.verdict is not Verdict.REPEATED:
            event_log.changed(event_id, instruction)
        return result

    async def count_matching(self, action: Action, event_filter: EventFilter) -> dict[str, int]:
        """Count the events that a bulk action would examine if it started now, by status."""
        affected = affected_events(action, event_filter, await self._now())
        if affected is None:
            return {}
        source = self._rollups if affected.counted_by_rollups else self._reader
        counts = await source.counts(event_queries.match(affected))
        return {each["_id"]: each["count"] for each in counts["by_status"]}

    async def start_bulk_action(
        self,
        instruction: Instruction,
        filters: str,
        *,
        limit: int | None,
        per_second: float | None,
    ) -> tuple[BulkAction, bool]:
        """Store a bulk action and wake the worker; `filters` is from `event_filter.filter_text`.

        Returns the bulk action and True. If its request id is known, returns the bulk action that
        was started under that id, and False.

        Raises:
            Refusal: 409 if the one under that id differs.
        """
        action = instruction.action
        if action is not Action.REPLAY:
            per_second = None
        bulk_action = await self._bulk_actions.get(instruction.request_id)
        new = False
        if bulk_action is None:
            bulk_action, new = await self._bulk_actions.start(
                instruction,
                filters=filters,
                limit=limit,
                per_second=per_second,
                matched=await self._count_if_fast(action, read_filter(filters)),
            )
        stored = (
            bulk_action.action,
            bulk_action.filters,
            bulk_action.limit,
            bulk_action.per_second,
        )
        if stored != (action, filters, limit, per_second):
            raise Refusal(
                409,
                "idempotency_conflict",
                "this request id belongs to another bulk action",
                (Detail("request_id", "use another one, or send the same request"),),
            )
        if new:
            event_log.bulk_action_started(bulk_action)
        self._wake()
        return bulk_action, new

    async def _count_if_fast(self, action: Action, event_filter: EventFilter) -> int | None:
        """Count the events; None if that takes too long, so that the bulk action still starts."""
        try:
            return sum((await self.count_matching(action, event_filter)).values())
        except StoreUnavailableError as error:
            log.warning("bulk_action_not_counted", cause=str(error))
            return None

    async def get_bulk_action(self, request_id: str) -> BulkAction:
        """Return a bulk action and its progress.

        Raises:
            Refusal: 404 if there is none.
        """
        return _found(await self._bulk_actions.get(request_id))

    async def recent_bulk_actions(self) -> list[BulkAction]:
        """Return the latest bulk actions, newest first."""
        return await self._bulk_actions.recent()

    async def stop_bulk_action(self, request_id: str, remote: str) -> BulkAction:
        """Stop a bulk action and return it; `remote` is the operator's address, for the log.

        Raises:
            Refusal: 404 if there is none.
        """
        stopped, was_running = await self._bulk_actions.stop(request_id)
        bulk_action = _found(stopped)
        if was_running:
            event_log.bulk_action_stopped(bulk_action, remote)
        return bulk_action


def _found(bulk_action: BulkAction | None) -> BulkAction:
    if bulk_action is None:
        raise Refusal(404, "not_found", "no bulk action has this request id")
    return bulk_action
