"""The timeline of one event: each step in order, and its next one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wds.domain.deliveries import Outcome, Status
from wds.domain.operator_actions import Action

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from wds.storage.mongo import Document

_ATTEMPT_WORDS = {
    Outcome.SUCCESS: "delivered",
    Outcome.FAILURE: "failed",
    Outcome.UNKNOWN: "outcome unknown",
}
_ACTION_WORDS = {Action.REPLAY: "Replayed", Action.CANCEL: "Cancelled"}


@dataclass(frozen=True)
class Entry:
    """One line of a timeline.

    Attributes:
        kind: "received", an attempt's outcome, an action, "leased" or "waiting"; chooses the icon.
        at: when it happened, or is due.
        title: what happened.
        text: details for people, if any.
        attempt: the stored record, if this is a finished attempt.
    """

    kind: str
    at: datetime
    title: str
    text: str | None = None
    attempt: Mapping[str, Any] | None = None


def timeline(event: Document) -> list[Entry]:
    """Return the entries of a stored event, oldest first; the last is its next step or its end."""
    # The ranks order entries of the same instant.
    ranked = [
        (0, Entry("received", event["received_at"], "Received")),
        *((1, _attempt(each)) for each in event["attempts"]),
        *((2, _action(each)) for each in event.get("history", [])),
    ]
    ranked.sort(key=lambda pair: (pair[1].at, pair[0]))
    entries = [entry for _, entry in ranked]
    if (last := _last_entry(event)) is not None:
        entries.append(last)
    return entries


def _attempt(attempt: Mapping[str, Any]) -> Entry:
    title = f"Attempt {attempt['attempt_number']} {_ATTEMPT_WORDS[Outcome(attempt['outcome'])]}"
    return Entry(attempt["outcome"], attempt["timestamp"], title, attempt=attempt)


def _action(record: Mapping[str, Any]) -> Entry:
    by, remote = record["by"], record["remote"]
    who = by if by == remote else f"{by} ({remote})"
    reason = f": {record['reason']}" if record.get("reason") else ""
    action = Action(record["action"])
    return Entry(str(action), record["at"], _ACTION_WORDS[action], f"by {who}{reason}")


def _last_entry(event: Document) -> Entry | None:
    """Return an entry for the attempt under way, for the next one, or for the permanent failure."""
    if "lease" in event:
        text = f"by {event['lease']['owner']}"
        if event.get("cancelling"):
            text += "; cancelled, so no attempt follows"
        title = f"Attempt {event['attempt_count']} under way"
        return Entry("leased", event["lease"]["since"], title, text)
    if "next_attempt_at" in event:
        title = f"Attempt {event['attempt_count'] + 1} is next"
        return Entry("waiting", event["next_attempt_at"], title)
    history = event.get("history", [])
    if history and history[-1]["action"] == Action.CANCEL:
        return None  # The cancel is the last entry already: only a replay could follow it.
    if event["status"] == Status.FAILED_PERMANENTLY:
        return Entry("failure", event["finished_at"], "Failed permanently")
    return None
