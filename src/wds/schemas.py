"""Every wire shape of the ingest service, for reading requests and for the OpenAPI document."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import marshmallow as ma
from marshmallow import fields, validate

from wds.errors import Detail, Refusal
from wds.model import MAX_BATCH, MAX_LABEL, Status, is_label

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_PAGE = 500
MAX_SKIP = 100_000
"""Skipping reads what it skips; a cursor goes to any depth at the same cost."""


class Instant(fields.AwareDateTime):
    """ISO 8601; without an offset it is UTC. Read as UTC."""

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Take marshmallow's own options."""
        super().__init__(format="iso", default_timezone=UTC, **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> datetime:  # noqa: ANN401
        instant = super()._deserialize(value, attr, data, **kwargs)
        try:
            return instant.astimezone(UTC)
        except OverflowError:
            msg = "Not an instant between the years 1 and 9999 in UTC."
            raise ma.ValidationError(msg) from None


class OneOrMany(fields.List[Any]):
    """A value, or a list of 1 to 100 of them. Read as a list."""

    def __init__(self, inner: fields.Field[Any], **kwargs: Any) -> None:  # noqa: ANN401
        """Take the field of one value."""
        super().__init__(inner, validate=validate.Length(1, 100), **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> list[Any]:  # noqa: ANN401
        many = value if isinstance(value, list) else [value]
        return super()._deserialize(many, attr, data, **kwargs)


class Cursor(fields.Field[tuple[datetime, str]]):
    """An opaque position in the order of a search: read as (received_at, event id)."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[datetime, str]:  # noqa: ANN401
        try:
            text = base64.b64decode(str(value), altchars=b"-_", validate=True).decode("ascii")
            milliseconds, _separator, event_id = text.partition(":")
            return datetime.fromtimestamp(int(milliseconds) / 1000, UTC), event_id
        except (binascii.Error, ValueError, OverflowError, OSError):
            msg = "Not a cursor that a search returned."
            raise ma.ValidationError(msg) from None


def cursor_after(received_at: datetime, event_id: str) -> str:
    """Return the cursor for what follows this event."""
    text = f"{round(received_at.timestamp() * 1000)}:{event_id}"
    return base64.urlsafe_b64encode(text.encode()).decode("ascii")


class StrictBoolean(fields.Boolean):
    """true or false; nothing that merely counts as one of them."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, bool):
            raise self.make_error(key="invalid", input=value)
        return super()._deserialize(value, attr, data, **kwargs)


def _event_type() -> fields.String:
    return fields.String(validate=[validate.Length(1, MAX_LABEL), _printable])


def _printable(value: str) -> None:
    if not is_label(value):
        msg = "Must be printable."
        raise ma.ValidationError(msg)


def _status() -> fields.String:
    return fields.String(validate=validate.OneOf([str(status) for status in Status]))


class DetailSchema(ma.Schema):
    """One problem of a request."""

    field = fields.String(metadata={"description": "Dotted path; empty for the whole body."})
    message = fields.String()


class ErrorSchema(ma.Schema):
    """Why a request was refused."""

    code = fields.String(required=True, metadata={"example": "invalid_signature"})
    message = fields.String(required=True)
    details = fields.List(fields.Nested(DetailSchema), required=True)


class ErrorEnvelopeSchema(ma.Schema):
    """What every answer from 400 on looks like."""

    error = fields.Nested(ErrorSchema, required=True)


class ReceiptSchema(ma.Schema):
    """An event is durable."""

    id = fields.String(required=True)
    status = _status()
    duplicate = fields.Boolean(metadata={"description": "An earlier request stored this event."})


class SourceAnswerSchema(ReceiptSchema):
    """A receipt, or the challenge that Slack sent; a form from Slack has no body for an answer."""

    id = fields.String()
    challenge = fields.String(metadata={"description": "What `url_verification` asks back."})


class BatchReceiptSchema(ma.Schema):
    """All events of a batch are durable."""

    accepted = fields.Integer(metadata={"description": "Events stored by this request."})
    duplicates = fields.Integer(metadata={"description": "Events that earlier ones stand for."})
    events = fields.List(fields.Nested(ReceiptSchema), metadata={"description": "In order."})


class PayloadSchema(ma.Schema):
    """Any JSON object; these fields mean something to wds."""

    class Meta:
        """Everything else passes through."""

        unknown = ma.INCLUDE

    event_type = fields.String(metadata={"example": "order.created"})
    idempotency_key = fields.String(
        validate=validate.Length(1, MAX_LABEL), metadata={"example": "order-1042"}
    )


class BatchSchema(ma.Schema):
    """A batch; a bare array of the same objects will do too."""

    events = fields.List(
        fields.Nested(PayloadSchema), required=True, validate=validate.Length(1, MAX_BATCH)
    )


class SearchRequestSchema(ma.Schema):
    """Filters, page and extras of a search; no field is required."""

    status = OneOrMany(_status(), metadata={"description": "One or several."})
    event_type = OneOrMany(_event_type(), metadata={"description": "One or several."})
    from_ = Instant(data_key="from", metadata={"description": "Received at or after."})
    to = Instant(metadata={"description": "Received before."})
    skip = fields.Integer(strict=True, load_default=0, validate=validate.Range(0, MAX_SKIP))
    limit = fields.Integer(strict=True, load_default=50, validate=validate.Range(1, MAX_PAGE))
    cursor = Cursor(metadata={"type": "string", "description": "`next_cursor` of a page."})
    include_payload = StrictBoolean(load_default=False)
    aggregations = StrictBoolean(load_default=True)

    @ma.validates_schema
    def _range(self, data: Mapping[str, Any], **_: Any) -> None:  # noqa: ANN401
        if "from_" in data and "to" in data and data["from_"] > data["to"]:
            msg = "Must not be before `from`."
            raise ma.ValidationError(msg, "to")


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
    """Which dispatcher has the event now."""

    owner = fields.String()
    since = fields.DateTime()


class EventSchema(ma.Schema):
    """An event. `payload` is what was received, character for character, where asked for."""

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
    status = _status()
    attempt_count = fields.Integer()
    next_attempt_at = fields.DateTime(allow_none=True)
    lease = fields.Nested(LeaseSchema, allow_none=True)
    trace = fields.Dict(keys=fields.String(), values=fields.String(), allow_none=True)
    attempts = fields.List(fields.Nested(AttemptSchema))
    payload = fields.Raw(metadata={"description": "A form is a string."})


class HourSchema(ma.Schema):
    """One bar of the histogram."""

    hour = fields.DateTime()
    count = fields.Integer()


class AggregationsSchema(ma.Schema):
    """Counts over everything that the filters match, not only over this page."""

    by_status = fields.Dict(keys=fields.String(), values=fields.Integer())
    by_event_type = fields.Dict(
        keys=fields.String(),
        values=fields.Integer(),
        metadata={"description": "Commonest first; events without a type count under ''."},
    )
    histogram = fields.List(fields.Nested(HourSchema), metadata={"description": "Oldest first."})


class SearchResponseSchema(ma.Schema):
    """A page of events, newest first."""

    events = fields.List(fields.Nested(EventSchema))
    total = fields.Integer(metadata={"description": "Events that the filters match."})
    next_cursor = fields.String(allow_none=True)
    aggregations = fields.Nested(AggregationsSchema)


class HealthSchema(ma.Schema):
    """Whether the process lives, or can do its work."""

    status = fields.String(validate=validate.OneOf(["ok", "unavailable"]))
    checks = fields.Dict(keys=fields.String(), values=fields.String())


def load(schema: ma.Schema, body: Mapping[str, Any]) -> dict[str, Any]:
    """Read `body` by `schema`.

    Raises:
        Refusal: 422 with every problem and its path.
    """
    try:
        loaded: dict[str, Any] = schema.load(body)
    except ma.ValidationError as error:
        details = tuple(_flatten(error.messages))
        raise Refusal(422, "invalid_request", "the request has the wrong shape", details) from None
    return loaded


def _flatten(messages: Any, path: str = "") -> list[Detail]:  # noqa: ANN401 - a tree of texts
    if isinstance(messages, dict):
        return [
            detail
            for key, value in messages.items()
            for detail in _flatten(value, f"{path}.{key}" if path else str(key)[:64])
        ]
    return [Detail(path, str(text)) for text in messages]
