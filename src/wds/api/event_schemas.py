"""JSON shapes of reading events: filters, searches, exports, and events with their attempts."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import marshmallow as ma
from marshmallow import fields, validate

from wds.domain.event_filter import (
    FILTERS,
    NEWEST_FIRST,
    OLDEST_FIRST,
    SORTS,
    EventFilter,
    FilterKind,
    Position,
    is_id_prefix,
)
from wds.domain.events import ID_LENGTH, MAX_LABEL
from wds.domain.operator_actions import Action
from wds.storage.rollup_queries import MAX_EVENT_TYPES
from wds.web.schemas import (
    Instant,
    OneOrMany,
    StrictBoolean,
    label,
    printable,
    status as status_field,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from wds.domain.event_filter import FilterSpec

MAX_PAGE = 500
MAX_INTEGER = 2**31 - 1
MAX_STATUS_CODE = 999
MAX_SKIP = 100_000
"""MongoDB reads the events that it skips; a cursor costs the same at any depth."""


class Cursor(fields.Field[tuple[str, Position]]):
    """An opaque position in the order of a search. Loaded as (sort, position)."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[str, Position]:  # noqa: ANN401
        try:
            text = base64.b64decode(str(value), altchars=b"-_", validate=True).decode("ascii")
            sort, attempts, milliseconds, event_id = text.split(":", 3)
            received_at = datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
            position = Position(received_at, event_id, int(attempts))
        except (binascii.Error, ValueError, OverflowError, OSError):
            position = None
        if position is None or abs(position.attempt_count) > MAX_INTEGER:
            msg = "Not a cursor that a search returned."
            raise ma.ValidationError(msg)
        return sort, position


def cursor_after(position: Position, sort: str = NEWEST_FIRST) -> str:
    """Return the cursor for the events that follow `position` in this order."""
    milliseconds = round(position.received_at.timestamp() * 1000)
    text = f"{sort}:{position.attempt_count}:{milliseconds}:{position.event_id}"
    return base64.urlsafe_b64encode(text.encode()).decode("ascii")


def _id_prefix(value: str) -> None:
    if not is_id_prefix(value):
        msg = f"Must be 1 to {ID_LENGTH} characters of lower-case hex."
        raise ma.ValidationError(msg)


_VALUES: Mapping[FilterKind, Callable[..., fields.Field[Any]]] = {
    FilterKind.STATUS: status_field,
    FilterKind.LABEL: label,
    FilterKind.STATUS_CODE: partial(
        fields.Integer, strict=True, validate=validate.Range(0, MAX_STATUS_CODE)
    ),
    FilterKind.KEY: partial(fields.String, validate=[validate.Length(1, MAX_LABEL), printable]),
    FilterKind.ID_PREFIX: partial(fields.String, validate=_id_prefix),
    FilterKind.COUNT: partial(fields.Integer, strict=True, validate=validate.Range(0, MAX_INTEGER)),
    FilterKind.INSTANT: Instant,
}
"""Kind of a filter -> field of one value."""


def _field(spec: FilterSpec) -> fields.Field[Any]:
    many = "One or several." if spec.many else ""
    metadata = {"description": f"{spec.description} {many}".strip()}
    if spec.kind is FilterKind.ID_PREFIX:
        metadata["pattern"] = f"^[0-9a-f]{{1,{ID_LENGTH}}}$"
    value = _VALUES[spec.kind]
    if spec.many:
        return OneOrMany(value(), data_key=spec.wire_name, metadata=metadata)
    return value(data_key=spec.wire_name, metadata=metadata)


class FilterSchema(ma.Schema):
    """Which events: those that match every filter given here."""

    class Meta:
        """One field for each of `FILTERS`."""

        include: ClassVar[dict[str, fields.Field[Any]]] = {
            spec.name: _field(spec) for spec in FILTERS
        }

    @ma.validates_schema
    def _range(self, data: Mapping[str, Any], **_: Any) -> None:  # noqa: ANN401
        if "from_" in data and "to" in data and data["from_"] > data["to"]:
            msg = "Must not be before `from`."
            raise ma.ValidationError(msg, "to")


def filter_of(loaded: Mapping[str, Any]) -> EventFilter:
    """Return the filter in a request that a `FilterSchema` has loaded."""
    return EventFilter(**{spec.name: loaded[spec.name] for spec in FILTERS if spec.name in loaded})


class SearchRequestSchema(FilterSchema):
    """Filters, page and options of a search; no field is required."""

    sort = fields.String(
        load_default=NEWEST_FIRST,
        validate=validate.OneOf(list(SORTS)),
        metadata={"description": "`-` is descending; a cursor belongs to its order."},
    )
    skip = fields.Integer(strict=True, load_default=0, validate=validate.Range(0, MAX_SKIP))
    limit = fields.Integer(strict=True, load_default=50, validate=validate.Range(1, MAX_PAGE))
    cursor = Cursor(metadata={"type": "string", "description": "`next_cursor` of a page."})
    include_payload = StrictBoolean(load_default=False)
    aggregations = StrictBoolean(load_default=True)

    @ma.validates_schema
    def _cursor(self, data: Mapping[str, Any], **_: Any) -> None:  # noqa: ANN401
        if "cursor" in data and data["cursor"][0] != data["sort"]:
            msg = "Belongs to a search with another `sort`."
            raise ma.ValidationError(msg, "cursor")


class ExportRequestSchema(FilterSchema):
    """Filters and options of an export; no field is required."""

    sort = fields.String(
        load_default=NEWEST_FIRST, validate=validate.OneOf([NEWEST_FIRST, OLDEST_FIRST])
    )
    include_payload = StrictBoolean(load_default=False)


class AttemptSchema(ma.Schema):
    """One attempt as recorded."""

    attempt_number = fields.Integer()
    timestamp = fields.DateTime()
    status_code = fields.Integer(allow_none=True)
    success = fields.Boolean()
    outcome = fields.String(validate=validate.OneOf(["success", "failure", "unknown"]))
    duration_ms = fields.Integer(allow_none=True)
    error = fields.String(allow_none=True)
    response = fields.String(allow_none=True, metadata={"description": "First KiB of the body."})


class LeaseSchema(ma.Schema):
    """The dispatcher that has a lease on the event."""

    owner = fields.String()
    since = fields.DateTime()


class HistorySchema(ma.Schema):
    """A replay or a cancel of an event by an operator."""

    action = fields.String(validate=validate.OneOf([str(action) for action in Action]))
    at = fields.DateTime()
    by = fields.String(metadata={"description": "Who, in their own words; not verified."})
    remote = fields.String(metadata={"description": "The address the request came from."})
    reason = fields.String(allow_none=True)
    request_id = fields.String()
    status = fields.String(metadata={"description": "The event's status before."})
    attempt_count = fields.Integer(metadata={"description": "The event's attempts before."})


class EventSchema(ma.Schema):
    """An event. `payload`, if requested, is character for character as received."""

    id = fields.String()
    source = fields.String()
    event_type = fields.String(allow_none=True)
    idempotency_key = fields.String(allow_none=True)
    content_type = fields.String()
    headers = fields.Dict(keys=fields.String(), values=fields.String())
    payload_sha256 = fields.String()
    received_at = fields.DateTime()
    finished_at = fields.DateTime(allow_none=True)
    destination = fields.String()
    status = status_field()
    attempt_count = fields.Integer()
    next_attempt_at = fields.DateTime(allow_none=True)
    lease = fields.Nested(LeaseSchema, allow_none=True)
    trace = fields.Dict(keys=fields.String(), values=fields.String(), allow_none=True)
    attempts = fields.List(fields.Nested(AttemptSchema))
    attempts_before = fields.Integer(
        metadata={
            "description": "Attempts before the last replay, which restarted the retry schedule."
        }
    )
    cancelling = fields.Boolean(
        metadata={
            "description": "The event becomes final with the attempt under way, successful or not."
        }
    )
    history = fields.List(
        fields.Nested(HistorySchema), metadata={"description": "Replays and cancels, oldest first."}
    )
    payload = fields.Raw(metadata={"description": "A form is a string."})


class HourSchema(ma.Schema):
    """One bar of the histogram."""

    hour = fields.DateTime()
    count = fields.Integer()


class AggregationsSchema(ma.Schema):
    """Counts of all events that the filters match, not only of this page."""

    by_status = fields.Dict(keys=fields.String(), values=fields.Integer())
    by_event_type = fields.Dict(
        keys=fields.String(),
        values=fields.Integer(),
        metadata={
            "description": "Commonest first, "
            f"the {MAX_EVENT_TYPES:,} commonest at most; events without a type count under ''."
        },
    )
    histogram = fields.List(fields.Nested(HourSchema), metadata={"description": "Oldest first."})


class SearchResponseSchema(ma.Schema):
    """A page of events."""

    events = fields.List(fields.Nested(EventSchema))
    total = fields.Integer(metadata={"description": "Events that the filters match."})
    next_cursor = fields.String(allow_none=True)
    aggregations = fields.Nested(AggregationsSchema)
