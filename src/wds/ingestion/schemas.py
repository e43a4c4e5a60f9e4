"""Wire shapes of what senders post and of what they are answered."""

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
