"""The actions of operators: replay and cancel, of one event or all that match a filter. Pure.

`PRECONDITIONS` says which events can be replayed or cancelled. The console's buttons, the reason in
a 409 and MongoDB's query follow from it, so they cannot differ.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from wds.domain.deliveries import LIVE_STATUSES, Status, attempts_since_replay
from wds.domain.events import is_label

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from wds.domain.event_filter import EventFilter


class Action(StrEnum):
    """An action of an operator on an event. The event's `history` has every one carried out."""

    REPLAY = "replay"
    CANCEL = "cancel"


class Instruction(Struct, frozen=True):
    """An operator's order to change events, as it is recorded in their `history`.

    Attributes:
        request_id: a repeated request has the same one and changes nothing twice.
        by: the operator, in their own words; not verified.
        remote: the network address that the request came from.
        reason: why, in their own words.
    """

    action: Action
    request_id: str
    by: str
    remote: str
    reason: str | None = None


def is_request_id(value: object) -> bool:
    """Tell whether `value` can be the id of an operator's request.

    A label, except the two that clients remove from the path of an address (RFC 3986, 5.2.4).
    """
    return is_label(value) and value not in {".", ".."}


# -- one event -------------------------------------------------------------------------------


class Verdict(StrEnum):
    """The result of an instruction on one event: done, or the reason why it changed nothing."""

    DONE = "done"
    REPEATED = "repeated"
    """An earlier request with the same id has done it."""
    CONFLICT = "conflict"
    """An earlier request with the same id has done the other action."""
    LEASED = "leased"
    WAITING = "waiting"
    """It waits for its first attempt, or the first since a replay; a replay changes nothing."""
    FINAL = "final"
    CANCELLING = "cancelling"
    FULL = "full"
    """The stored event leaves no room for further attempts."""


class Presence(NamedTuple):
    """Condition: a field of the stored event is there, or is not."""

    field: str
    present: bool


class AttemptsSinceReplay(NamedTuple):
    """Condition: at least `least` attempts have started since the last replay, if any."""

    least: int


class Precondition(NamedTuple):
    """A condition of an action: the event must meet at least one of the `alternatives`.

    Attributes:
        otherwise: the verdict on an event that meets none of them.
    """

    otherwise: Verdict
    alternatives: Sequence[Presence | AttemptsSinceReplay]


_NOT_CANCELLING = Precondition(Verdict.CANCELLING, [Presence("cancelling", present=False)])

PRECONDITIONS: Mapping[Action, Sequence[Precondition]] = {
    Action.REPLAY: (
        _NOT_CANCELLING,
        Precondition(Verdict.LEASED, [Presence("lease", present=False)]),
        Precondition(
            Verdict.WAITING,
            [Presence("next_attempt_at", present=False), AttemptsSinceReplay(least=1)],
        ),
    ),
    Action.CANCEL: (
        _NOT_CANCELLING,
        Precondition(Verdict.FINAL, [Presence("next_attempt_at", present=True)]),
    ),
}
"""All of them must be met; the first that is not gives the verdict."""


def obstacle(action: Action, event: Mapping[str, Any]) -> Verdict | None:
    """Return why an action would not change a stored event now; None if it would."""
    for precondition in PRECONDITIONS[action]:
        if not any(_is_met(each, event) for each in precondition.alternatives):
            return precondition.otherwise
    return None


def _is_met(condition: Presence | AttemptsSinceReplay, event: Mapping[str, Any]) -> bool:
    if isinstance(condition, Presence):
        return (condition.field in event) == condition.present
    attempts = attempts_since_replay(event["attempt_count"], event.get("attempts_before", 0))
    return attempts >= condition.least


def can_replay(event: Mapping[str, Any]) -> bool:
    """Tell whether a replay would change a stored event now."""
    return obstacle(Action.REPLAY, event) is None


def can_cancel(event: Mapping[str, Any]) -> bool:
    """Tell whether a cancel would change a stored event now."""
    return obstacle(Action.CANCEL, event) is None


# -- bulk actions ----------------------------------------------------------------------------


class BulkAction(Struct, frozen=True, kw_only=True):
    """A replay or cancel of all events that match a filter, and its progress.

    Attributes:
        filters: JSON text of the filters, as `event_filter.filter_text` writes it.
        limit: most events to change, the oldest first; None for all.
        per_second: how many replayed events become due per second; None for all at once.
        matched: events that matched at its start; None if counting them took too long.
        examined: events looked at so far.
        changed: events replayed or cancelled so far.
        state: running, done, stopped or failed.
        stop_requested: an operator has asked for no further changes.
        failure: why it failed, if it did.
    """

    request_id: str
    action: Action
    by: str
    remote: str
    reason: str | None
    filters: str
    limit: int | None
    per_second: float | None
    matched: int | None
    examined: int
    changed: int
    state: str
    started_at: datetime
    finished_at: datetime | None = None
    stop_requested: bool = False
    failure: str | None = None

    @property
    def instruction(self) -> Instruction:
        """Return the instruction that it carries out on each event."""
        return Instruction(self.action, self.request_id, self.by, self.remote, self.reason)


AFFECTED_STATUSES: Mapping[Action, Sequence[Status]] = {
    Action.REPLAY: (Status.DELIVERING, Status.DELIVERED, Status.FAILED_PERMANENTLY),
    Action.CANCEL: LIVE_STATUSES,
}
"""Statuses in which an action can change an event. A RECEIVED event has no attempt to replay."""


def affected_events(
    action: Action, event_filter: EventFilter, before: datetime
) -> EventFilter | None:
    """Narrow a filter to the events that a bulk action which starts at `before` examines.

    Events received later, and statuses in which there is nothing to do, are left out. None if no
    status is left.
    """
    chosen = event_filter.status or list(Status)
    statuses = [str(status) for status in AFFECTED_STATUSES[action] if status in chosen]
    if not statuses:
        return None
    to = before if event_filter.to is None else min(event_filter.to, before)
    return event_filter.replace(status=statuses, to=to)
