"""JSON shapes of replay, cancel and bulk actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import marshmallow as ma
from marshmallow import fields, validate

from wds.api.event_schemas import MAX_INTEGER, FilterSchema
from wds.domain.event_filter import FILTERS
from wds.domain.events import MAX_LABEL, is_label
from wds.domain.operator_actions import Action, is_request_id
from wds.web.schemas import StrictBoolean

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_REASON = 1000
MIN_PER_SECOND = 0.001
"""Least `per_second` of a replay. At a far lower rate, events would become due after the year 9999,
which Python cannot represent."""
STATES = ("running", "done", "stopped", "failed")


def _label(description: str) -> fields.String:
    def check(value: str) -> None:
        if not is_label(value):
            msg = f"Must be 1 to {MAX_LABEL} printable characters."
            raise ma.ValidationError(msg)

    return fields.String(validate=check, metadata={"description": description})


def _request_id(value: str) -> None:
    if not is_request_id(value):
        msg = f"Must be 1 to {MAX_LABEL} printable characters, and neither . nor .. alone."
        raise ma.ValidationError(msg)


def _per_second(value: float) -> None:
    if 0 < value < MIN_PER_SECOND:
        msg = f"Must be 0 or at least {MIN_PER_SECOND:g}."
        raise ma.ValidationError(msg)


class InstructionSchema(ma.Schema):
    """The operator and the reason; no field is required."""

    request_id = fields.String(
        validate=_request_id,
        metadata={
            "description": "Makes the request repeatable; the header Idempotency-Key does the same."
            f" 1 to {MAX_LABEL} printable characters, and neither . nor .. alone."
        },
    )
    by = _label(
        "The operator, for the event's history. The address of the request is kept as well."
    )
    reason = fields.String(
        validate=validate.Length(1, MAX_REASON), metadata={"description": "Why."}
    )


class BulkRequestSchema(FilterSchema, InstructionSchema):
    """Filters, of which at least one is required, and options of the bulk action."""

    dry_run = StrictBoolean(
        load_default=False, metadata={"description": "Only count the events that match."}
    )
    limit = fields.Integer(
        strict=True,
        validate=validate.Range(1, MAX_INTEGER),
        metadata={"description": "Change no more events than this, the oldest first."},
    )

    @ma.validates_schema
    def _filtered(self, data: Mapping[str, Any], **_: Any) -> None:  # noqa: ANN401
        if not any(spec.name in data for spec in FILTERS):
            msg = "Give at least one filter; `from` 1970-01-01 means every event."
            raise ma.ValidationError(msg)


class BulkReplayRequestSchema(BulkRequestSchema):
    """Filters and options of a bulk replay."""

    per_second = fields.Float(
        validate=[validate.Range(0, 100_000), _per_second],
        allow_nan=False,
        metadata={
            "description": "Events that become due per second: new events are delivered in between;"
            f" 0 for all at once, else at least {MIN_PER_SECOND:g}; default: half of WDS_RATE_LIMIT"
        },
    )


class ChangedSchema(ma.Schema):
    """The result of a replay or cancel of one event."""

    id = fields.String()
    status = fields.String(metadata={"description": "The event's status now."})
    request_id = fields.String()
    repeated = fields.Boolean(metadata={"description": "An earlier request has done it."})
    cancelling = fields.Boolean(
        metadata={"description": "The attempt under way is finished; none follows it."}
    )


class BulkSchema(ma.Schema):
    """A bulk action and its progress."""

    request_id = fields.String()
    action = fields.String(validate=validate.OneOf([str(action) for action in Action]))
    state = fields.String(validate=validate.OneOf(STATES))
    stop_requested = fields.Boolean()
    failure = fields.String(allow_none=True)
    by = fields.String()
    remote = fields.String()
    reason = fields.String(allow_none=True)
    filters = fields.Nested(FilterSchema)
    limit = fields.Integer(allow_none=True)
    per_second = fields.Float(allow_none=True)
    matched = fields.Integer(
        allow_none=True,
        metadata={
            "description": "Events that matched at its start; null if counting took too long."
        },
    )
    examined = fields.Integer(metadata={"description": "Events examined."})
    changed = fields.Integer(metadata={"description": "Events replayed or cancelled."})
    skipped = fields.Integer(
        metadata={"description": "Events examined and not changed: there was nothing to do."}
    )
    started_at = fields.DateTime()
    finished_at = fields.DateTime(allow_none=True)


class BulkAnswerSchema(BulkSchema):
    """A bulk action that was started before, or the counts of a dry run."""

    dry_run = fields.Boolean(
        metadata={
            "description": "True in the answer to a dry run, which has only `action` and counts."
        }
    )
    by_status = fields.Dict(keys=fields.String(), values=fields.Integer())


class BulkListSchema(ma.Schema):
    """The latest bulk actions, newest first."""

    bulk_actions = fields.List(fields.Nested(BulkSchema))
