"""What happened to one event, in order, as its page tells it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wds.domain.deliveries import Outcome, Status
from wds.domain.operator_actions import Action

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from wds.storage.mongo import Document

_ATTEMPT = {
    Outcome.SUCCESS: "delivered",
    Outcome.FAILURE: "failed",
    Outcome.UNKNOWN: "outcome unknown",
}
_ACTION = {Action.REPLAY: "Replayed", Action.CANCEL: "Cancelled"}


@dataclass(frozen=True)
class Entry:
    """One thing that happened, or will; `attempt` is the record of an attempt."""

    kind: str
    at: datetime
    title: str
    text: str | None = None
    attempt: Mapping[str, Any] | None = None


def story(event: Document) -> list[Entry]:
    """Return what happened to an event as stored, oldest first, and what comes next."""
    happened = [
        (0, Entry("received", event["received_at"], "Received")),
        *((1, _attempt(each)) for each in event["attempts"]),
        *((2, _action(each)) for each in event.get("history", [])),
    ]
    happened.sort(key=lambda pair: (pair[1].at, pair[0]))
    told = [entry for _, entry in happened]
    if (ending := _ending(event)) is not None:
        told.append(ending)
    return told


def _attempt(attempt: Mapping[str, Any]) -> Entry:
    title = f"Attempt {attempt['attempt_number']} {_ATTEMPT[Outcome(attempt['outcome'])]}"
    return Entry(attempt["outcome"], attempt["timestamp"], title, attempt=attempt)


def _action(done: Mapping[str, Any]) -> Entry:
    by = done["by"] if done["by"] == done["remote"] else f"{done['by']} ({done['remote']})"
    reason = f": {done['reason']}" if done.get("reason") else ""
    return Entry(
        str(done["action"]), done["at"], _ACTION[Action(done["action"])], f"by {by}{reason}"
    )


def _ending(event: Document) -> Entry | None:
    if "lease" in event:
        text = f"by {event['lease']['owner']}"
        if event.get("cancelling"):
            text += "; cancelled, so nothing comes after it"
        title = f"Attempt {event['attempt_count']} under way"
        return Entry("leased", event["lease"]["since"], title, text)
    if "next_attempt_at" in event:
        title = f"Attempt {event['attempt_count'] + 1} is next"
        return Entry("waiting", event["next_attempt_at"], title)
    history = event.get("history", [])
    if history and history[-1]["action"] == Action.CANCEL:
        return None  # told: after a cancel only a replay would go on
    if event["status"] == Status.FAILED_PERMANENTLY:
        return Entry("failure", event["finished_at"], "Given up")
    return None
