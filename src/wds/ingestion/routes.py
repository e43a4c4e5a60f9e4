"""The ingest routes and how the OpenAPI document describes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wds.domain.events import MAX_LABEL
from wds.ingestion.schemas import (
    BatchReceiptSchema,
    BatchSchema,
    PayloadSchema,
    ReceiptSchema,
    SourceAnswerSchema,
)
from wds.signing.registry import SCHEMES
from wds.signing.wds import WDS
from wds.web.openapi import Operation, header

if TYPE_CHECKING:
    from wds.ingestion.handlers import IngestHandlers

_DEFAULT_HEADERS = (
    *(header(name, f"{WDS.header_format}; one of the two") for name in WDS.headers),
    header(
        "Idempotency-Key",
        "Used where the payload has no idempotency_key; printable characters",
        minLength=1,
        maxLength=MAX_LABEL,
    ),
    header("X-Event-Type", "Used where the payload names no type"),
)
_SOURCE_HEADERS = tuple(
    header(name, f"Scheme {scheme.name}: {scheme.header_format}")
    for scheme in SCHEMES.values()
    for name in scheme.headers
    if scheme is not WDS
)
_ERRORS = (400, 401, 408, 409, 413, 415, 422, 503)
_EXAMPLE = {"event_type": "order.created", "idempotency_key": "order-1042", "total": 99.5}


def operations(handlers: IngestHandlers) -> list[Operation]:
    """Return the routes that senders use."""
    return [
        Operation(
            "POST",
            "/webhooks/ingest",
            handlers.event,
            "Send an event",
            "send",
            {
                202: ("Stored", ReceiptSchema),
                200: ("Stored before, under this key", ReceiptSchema),
            },
            _ERRORS,
            body=PayloadSchema,
            example=_EXAMPLE,
            parameters=_DEFAULT_HEADERS,
        ),
        Operation(
            "POST",
            "/webhooks/ingest/batch",
            handlers.batch,
            "Send many events",
            "send",
            {202: ("All stored", BatchReceiptSchema)},
            _ERRORS,
            body=BatchSchema,
            example={"events": [_EXAMPLE, {"type": "ping"}]},
            parameters=_DEFAULT_HEADERS,
        ),
        Operation(
            "POST",
            "/webhooks/ingest/{source}",
            handlers.source_event,
            "Send an event as a configured source",
            "send",
            {
                202: ("Stored", ReceiptSchema),
                200: ("Stored before, or a challenge answered", SourceAnswerSchema),
            },
            (404, *_ERRORS),
            body=PayloadSchema,
            example=_EXAMPLE,
            parameters=_SOURCE_HEADERS,
        ),
    ]
