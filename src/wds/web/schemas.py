"""Marshmallow fields and schemas that several HTTP interfaces share, and `load`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import marshmallow as ma
from marshmallow import fields, validate

from wds.domain.deliveries import Status
from wds.domain.errors import Detail, wrong_shape
from wds.domain.events import MAX_LABEL, is_label

if TYPE_CHECKING:
    from collections.abc import Mapping


class Instant(fields.AwareDateTime):
    """ISO 8601 to a datetime in UTC; text without an offset is UTC."""

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Pass marshmallow's options on."""
        super().__init__(format="iso", default_timezone=UTC, **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> datetime:  # noqa: ANN401
        instant = super()._deserialize(value, attr, data, **kwargs)
        try:
            return instant.astimezone(UTC)
        except OverflowError:
            msg = "Not an instant between the years 1 and 9999 in UTC."
            raise ma.ValidationError(msg) from None


class OneOrMany(fields.List[Any]):
    """A value, or a list of 1 to 100 of them; loads as a list."""

    def __init__(self, inner: fields.Field[Any], **kwargs: Any) -> None:  # noqa: ANN401
        """`inner` is the field of one value."""
        super().__init__(inner, validate=validate.Length(1, 100), **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> list[Any]:  # noqa: ANN401
        values = value if isinstance(value, list) else [value]
        return super()._deserialize(values, attr, data, **kwargs)


class StrictBoolean(fields.Boolean):
    """true or false; marshmallow also accepts values such as "yes" and 1."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, bool):
            raise self.make_error(key="invalid", input=value)
        return super()._deserialize(value, attr, data, **kwargs)


def label() -> fields.String:
    """Return a field for an event type, a source or a destination."""
    return fields.String(validate=[validate.Length(1, MAX_LABEL), printable])


def printable(value: str) -> None:
    """Return if `value` is printable.

    Raises:
        ValidationError: `value` has a control character or an invisible one.
    """
    if not is_label(value):
        msg = "Must be printable."
        raise ma.ValidationError(msg)


def status() -> fields.String:
    """Return a field for an event's status."""
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
    """The body of every answer from 400 on."""

    error = fields.Nested(ErrorSchema, required=True)


class HealthSchema(ma.Schema):
    """Whether the process is alive, or can do its work."""

    status = fields.String(validate=validate.OneOf(["ok", "unavailable"]))
    checks = fields.Dict(keys=fields.String(), values=fields.String())


def load(schema: ma.Schema, body: Mapping[str, Any]) -> dict[str, Any]:
    """Validate `body` against `schema` and return the loaded values.

    Raises:
        Refusal: 422 with every problem and its path.
    """
    try:
        loaded: dict[str, Any] = schema.load(body)
    except ma.ValidationError as error:
        raise wrong_shape(*_flatten(error.messages)) from None
    return loaded


def _flatten(messages: Any, path: str = "") -> list[Detail]:  # noqa: ANN401 - a tree of texts
    if isinstance(messages, dict):
        return [
            detail
            for key, value in messages.items()
            for detail in _flatten(value, f"{path}.{key}" if path else str(key)[:64])
        ]
    return [Detail(path, str(text)) for text in messages]
