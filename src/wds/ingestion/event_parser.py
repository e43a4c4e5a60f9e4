"""Builds the events of a verified request: id, type, idempotency key, payload, headers to keep."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from multidict import CIMultiDict

from wds.domain.errors import Detail, Refusal, wrong_shape
from wds.domain.events import MAX_BATCH, NewEvent, derived_id, random_id
from wds.ingestion import payload
from wds.signing.scheme import single_header
from wds.web.json_body import is_json, require_object

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web
    from multidict import MultiMapping

    from wds.ingestion.sources import Source
    from wds.signing.scheme import Proof

KEPT_HEADERS = frozenset(
    {
        "user-agent",
        "x-request-id",
        "x-event-type",
        "x-github-event",
        "x-github-delivery",
        "x-shopify-topic",
        "x-shopify-shop-domain",
        "x-shopify-webhook-id",
        "x-slack-retry-num",
        "webhook-id",
        "webhook-timestamp",
        "idempotency-key",
        "traceparent",
    }
)
"""Headers stored with an event. A short list: others may carry credentials."""
MAX_KEPT_HEADER = 512
"""Characters; a longer header is not stored."""

_entropy = random.Random()  # noqa: S311 - ids need to differ, not to be secret
"""Seeded by the system once: asking it for each event costs as much as reading a small one."""


def check_content_type(request: web.Request, *, forms: bool = False) -> str:
    """Return the Content-Type as sent, if wds can read the body.

    Raises:
        Refusal: 415 if the body is compressed or is neither JSON in UTF-8 nor, with `forms`, a
            form; 400 if the header is repeated.
    """
    encoding = (single_header(request.headers, "Content-Encoding") or "identity").strip().lower()
    if encoding != "identity":
        raise Refusal(415, "unsupported_encoding", "send the body without Content-Encoding")
    value = single_header(request.headers, "Content-Type") or ""
    accepted = is_json(value) or (forms and payload.is_form(value))
    if not accepted or not (value.isascii() and value.isprintable()):
        kinds = "application/json or application/x-www-form-urlencoded"
        expected = kinds if forms else "application/json"
        raise Refusal(415, "unsupported_media_type", f"send Content-Type: {expected}")
    charset = (request.charset if ";" in value else None) or "utf-8"
    if charset.strip().lower() not in {"utf-8", "utf8", "us-ascii"}:
        raise Refusal(415, "unsupported_charset", "send UTF-8")
    return value


class VerifiedRequest(Struct, frozen=True):
    """A request that its source signed, with its body and its Content-Type as sent."""

    request: web.Request
    source: Source
    proof: Proof
    body: bytes
    content_type: str


def parse_event(verified: VerifiedRequest, fields: dict[str, Any]) -> NewEvent:
    """Return the one event of a request. `fields` holds the body fields that its source reads.

    Raises:
        Refusal: 422 if its idempotency key is not a label.
    """
    headers = verified.request.headers
    key = payload.first_idempotency_key(_key_candidates(verified, fields, headers))
    return _new_event(verified, verified.body, fields, key, headers)


def parse_batch(verified: VerifiedRequest) -> list[NewEvent]:
    """Return the events of a batch, each with the exact bytes that it has there.

    An `Idempotency-Key` header applies to all: event number n gets it with `/n` appended.

    Raises:
        Refusal: 400 or 422 with every problem of every event.
    """
    batch_key = single_header(verified.request.headers, "Idempotency-Key")
    if batch_key is not None:
        payload.first_idempotency_key([batch_key])
        payload.first_idempotency_key([f"{batch_key}/{MAX_BATCH - 1}"])
    headers = CIMultiDict(verified.request.headers)
    events: list[NewEvent] = []
    problems: list[Detail] = []
    for index, (text, value) in enumerate(payload.split_batch(verified.body)):
        if batch_key is not None:
            headers["Idempotency-Key"] = f"{batch_key}/{index}"
        path = f"events.{index}"
        try:
            fields = require_object(value, path)
            candidates = _key_candidates(verified, fields, headers)
            key = payload.first_idempotency_key(candidates, f"{path}.")
        except Refusal as refusal:
            problems.extend(refusal.details)
        else:
            events.append(_new_event(verified, text, fields, key, headers))
    if problems:
        raise wrong_shape(*problems)
    return events


def conflicting_indexes(events: list[NewEvent]) -> list[int]:
    """Return the indexes of events that repeat a key of this batch with another payload."""
    first: dict[str, NewEvent] = {}
    return [
        index
        for index, each in enumerate(events)
        if first.setdefault(each.id, each).payload != each.payload
    ]


def _key_candidates(
    verified: VerifiedRequest, fields: dict[str, Any], headers: MultiMapping[str]
) -> Iterator[object]:
    for location in verified.source.idempotency_key:
        yield location.value(fields, headers, verified.proof)


def _new_event(
    verified: VerifiedRequest,
    body: bytes,
    fields: dict[str, Any],
    key: str | None,
    headers: MultiMapping[str],
) -> NewEvent:
    source = verified.source
    return NewEvent(
        id=random_id(datetime.now(UTC), _entropy.randbytes(10))
        if key is None
        else derived_id(source.name, key),
        source=source.name,
        payload=body,
        content_type=verified.content_type,
        event_type=payload.first_event_type(
            location.value(fields, headers, verified.proof) for location in source.event_type
        ),
        idempotency_key=key,
        headers=_kept_headers(verified.request.headers),
    )


def _kept_headers(headers: MultiMapping[str]) -> dict[str, str]:
    """Return the headers to store, by lower-case name; of a repeated header the first."""
    kept: dict[str, str] = {}
    for name, text in headers.items():
        lower = name.lower()
        if lower in KEPT_HEADERS:
            kept.setdefault(lower, text)
    return {
        name: text
        for name, text in kept.items()
        if text and len(text) <= MAX_KEPT_HEADER and text.isascii() and text.isprintable()
    }
