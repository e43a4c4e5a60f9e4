"""The paths of the console that other modules redirect or link to; `routes` has all of them."""

from __future__ import annotations

from urllib.parse import quote

HOME = "/console"
LOGIN = f"{HOME}/login"
ACTIONS = f"{HOME}/actions"


def event_path(event_id: str) -> str:
    """Return the path of an event's page. Event ids are hex and need no quoting."""
    return f"{HOME}/events/{event_id}"


def bulk_action_path(request_id: str) -> str:
    """Return the path of a bulk action's page. A request id may be any printable text."""
    return f"{ACTIONS}/{quote(request_id, safe='')}"
