"""Event filters: how operators choose events, sort them and mark a place in the result. Pure.

`FILTERS` is the one list of filters. The HTTP schema, MongoDB's query, the commands' arguments and
the console's fields follow from it: a new filter is a field of `EventFilter` and a line here.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct, structs

from wds.domain.events import ID_LENGTH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class EventFilter(Struct, frozen=True, kw_only=True):
    """Which events an operator means: those that match every filter in use.

    Attributes:
        status: one of these; empty means any. The other sequences likewise.
        last_status_code: HTTP status of the last attempt; 0 if it got no answer.
        idempotency_key: exactly this one.
        id_prefix: beginning of the event's id, lower-case hex; see `is_id_prefix`.
        min_attempts: least number of attempts that were started.
        from_: received at this instant or later.
        to: received before this instant.
    """

    status: Sequence[str] = ()
    event_type: Sequence[str] = ()
    source: Sequence[str] = ()
    destination: Sequence[str] = ()
    last_status_code: Sequence[int] = ()
    idempotency_key: str | None = None
    id_prefix: str | None = None
    min_attempts: int = 0
    from_: datetime | None = None
    to: datetime | None = None

    def in_use(self) -> list[FilterSpec]:
        """Return the filters that narrow the choice."""
        return [spec for spec in FILTERS if getattr(self, spec.name)]

    @property
    def counted_by_rollups(self) -> bool:
        """Tell whether the rollups can count the events without reading them all."""
        return all(spec.in_rollups for spec in self.in_use())

    def replace(self, **changes: Any) -> EventFilter:  # noqa: ANN401 - any field's value
        """Return a copy with some filters replaced."""
        return structs.replace(self, **changes)


class FilterKind(StrEnum):
    """The kind of a filter's values."""

    STATUS = "status"
    """A `Status`."""
    LABEL = "label"
    """Printable text: the name of a type, a source or a destination."""
    STATUS_CODE = "status_code"
    """An HTTP status code; 0 for no answer."""
    KEY = "key"
    """An idempotency key."""
    ID_PREFIX = "id_prefix"
    """Lower-case hex, at most as long as an event's id."""
    COUNT = "count"
    """A whole number from 0 on."""
    INSTANT = "instant"
    """An instant; ISO 8601 where it is text."""


class FilterSpec(NamedTuple):
    """One filter.

    Attributes:
        name: field of `EventFilter`.
        kind: the kind of each value.
        many: several values can be given; an event has to match one of them.
        in_rollups: the rollups count events by this field.
        description: a sentence for operators; empty where the name says it.
    """

    name: str
    kind: FilterKind
    many: bool
    in_rollups: bool
    description: str

    @property
    def wire_name(self) -> str:
        """Return the name in requests, in addresses and on the command line."""
        return self.name.rstrip("_")


def _many(name: str, kind: FilterKind, description: str = "") -> FilterSpec:
    return FilterSpec(name, kind, many=True, in_rollups=True, description=description)


def _one(name: str, kind: FilterKind, description: str, *, in_rollups: bool = True) -> FilterSpec:
    return FilterSpec(name, kind, many=False, in_rollups=in_rollups, description=description)


FILTERS: Sequence[FilterSpec] = (
    _many("status", FilterKind.STATUS),
    _many("event_type", FilterKind.LABEL),
    _many("source", FilterKind.LABEL),
    _many("destination", FilterKind.LABEL),
    _many(
        "last_status_code",
        FilterKind.STATUS_CODE,
        "Of the last attempt; 0 means that it got no answer.",
    ),
    _one("idempotency_key", FilterKind.KEY, "Exactly this one.", in_rollups=False),
    _one("id_prefix", FilterKind.ID_PREFIX, "Beginning of the event's id.", in_rollups=False),
    _one("min_attempts", FilterKind.COUNT, "Least number of attempts that were started."),
    _one("from_", FilterKind.INSTANT, "Received at or after."),
    _one("to", FilterKind.INSTANT, "Received before."),
)
WIRE_NAMES: Sequence[str] = tuple(spec.wire_name for spec in FILTERS)


def is_id_prefix(text: str) -> bool:
    """Tell whether event ids can begin with `text`."""
    return 0 < len(text) <= ID_LENGTH and all(each in "0123456789abcdef" for each in text)


# -- the filters of a bulk action, as text ---------------------------------------------------


def filter_text(request: Mapping[str, Any]) -> str:
    """Return the filters of a request as JSON text, each value as the operator wrote it.

    A bulk action is stored with this text. Operators get it back, and a repeated request is
    recognised by it.
    """
    return json.dumps(
        {name: request[name] for name in WIRE_NAMES if name in request}, sort_keys=True
    )


def read_filter(text: str) -> EventFilter:
    """Read what `filter_text` wrote of a valid request.

    Raises:
        ValueError: it is not JSON, or an instant is malformed.
    """
    request = json.loads(text)
    return EventFilter(
        **{
            spec.name: _value(spec, request[spec.wire_name])
            for spec in FILTERS
            if spec.wire_name in request
        }
    )


def _value(spec: FilterSpec, value: Any) -> Any:  # noqa: ANN401 - JSON
    if spec.many:
        return value if isinstance(value, list) else [value]
    if spec.kind is FilterKind.INSTANT:
        instant = datetime.fromisoformat(value)
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)
    return value


# -- sort orders and positions ---------------------------------------------------------------

Order = list[tuple[str, int]]
"""Fields of a stored event to sort by, each with its direction, 1 or -1. `_id` comes last, so that
no two events are equal."""

NEWEST_FIRST = "-received_at"
OLDEST_FIRST = "received_at"
SORTS: Mapping[str, Order] = {
    NEWEST_FIRST: [("received_at", -1), ("_id", -1)],
    OLDEST_FIRST: [("received_at", 1), ("_id", 1)],
    "-attempt_count": [("attempt_count", -1), ("received_at", -1), ("_id", -1)],
    "attempt_count": [("attempt_count", 1), ("received_at", 1), ("_id", 1)],
}
"""Name in a request -> order. `-` is descending, as in JSON:API."""


class Position(NamedTuple):
    """A position in any of the orders: that of the last event that was read."""

    received_at: datetime
    event_id: str
    attempt_count: int = 0
