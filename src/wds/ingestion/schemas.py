"""JSON shapes of what senders post and of the answers to them."""

from __future__ import annotations

import marshmallow as ma
from marshmallow import fields, validate

from wds.domain.events import MAX_BATCH, MAX_LABEL
from wds.web import schemas


class ReceiptSchema(ma.Schema):
    """An event is durable."""

    id = fields.String(required=True)
    status = schemas.status()
    duplicate = fields.Boolean(metadata={"description": "An earlier request stored this event."})


class SourceAnswerSchema(ReceiptSchema):
    """A receipt, or the challenge that Slack sent. A form from Slack is answered without a body."""

    id = fields.String()
    challenge = fields.String(metadata={"description": "The challenge of a `url_verification`."})


class BatchReceiptSchema(ma.Schema):
    """All events of a batch are durable."""

    accepted = fields.Integer(metadata={"description": "Events stored by this request."})
    duplicates = fields.Integer(metadata={"description": "Events stored by an earlier request."})
    events = fields.List(fields.Nested(ReceiptSchema), metadata={"description": "In order."})


class PayloadSchema(ma.Schema):
    """Any JSON object. wds reads these fields."""

    class Meta:
        """Other fields are kept."""

        unknown = ma.INCLUDE

    event_type = fields.String(metadata={"example": "order.created"})
    idempotency_key = fields.String(
        validate=validate.Length(1, MAX_LABEL), metadata={"example": "order-1042"}
    )


class BatchSchema(ma.Schema):
    """A batch. An array of the same objects is accepted too."""

    events = fields.List(
        fields.Nested(PayloadSchema), required=True, validate=validate.Length(1, MAX_BATCH)
    )
