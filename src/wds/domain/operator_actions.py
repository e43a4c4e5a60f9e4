"""What operators do to events, and who may be asked for it. Pure."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from wds.domain.events import is_label


class Action(StrEnum):
    """What an operator can do to an event; each one done is kept in its `history`."""

    REPLAY = "replay"
    CANCEL = "cancel"


class Instruction(Struct, frozen=True):
    """What an operator wants done to an event, as it goes on its record.

    Attributes:
        request_id: whoever repeats it changes nothing twice.
        by: who asks, in their own words; not proven.
        remote: the network address the request came from.
        reason: why, in their own words.
    """

    action: Action
    request_id: str
    by: str
    remote: str
    reason: str | None = None


def is_request_id(value: object) -> bool:
    """Tell whether `value` can be the id of an operator's request.

    A label, but for the two that clients take out of the path of an address (RFC 3986, 5.2.4).
    """
    return is_label(value) and value not in {".", ".."}
