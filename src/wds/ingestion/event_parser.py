"""From a verified request to the events in it: type and encoding, fields, key, id, kept headers."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from multidict import CIMultiDict

from wds.domain.errors import Detail, Refusal
from wds.domain.events import MAX_BATCH, NewEvent, derived_id, random_id
from wds.ingestion import payload
from wds.signing.schemes import only

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web
    from multidict import MultiMapping

    from wds.ingestion.sources import Source
    from wds.signing.schemes import Proof

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

_entropy = random.Random()  # noqa: S311 - ids need to differ, not to be secret
"""Seeded by the system once: asking it for each event costs as much as reading a small one."""


def content_type(request: web.Request, *, forms: bool = False) -> str:
    """Return the Content-Type as sent.

    Raises:
        Refusal: 415 if it is not JSON in UTF-8 sent as it is, nor, with `forms`, a form; 400 if
            it is given twice.
    """
    encoding = (only(request.headers, "Content-Encoding") or "identity").strip().lower()
    if encoding != "identity":
        raise Refusal(415, "unsupported_encoding", "send the body without Content-Encoding")
    value = only(request.headers, "Content-Type") or ""
    accepted = payload.is_json(value) or (forms and payload.is_form(value))
    if not accepted or not (value.isascii() and value.isprintable()):
        kinds = "application/json or application/x-www-form-urlencoded"
        wanted = kinds if forms else "application/json"
        raise Refusal(415, "unsupported_media_type", f"send Content-Type: {wanted}")
    charset = (request.charset if ";" in value else None) or "utf-8"
    if charset.strip().lower() not in {"utf-8", "utf8", "us-ascii"}:
        raise Refusal(415, "unsupported_charset", "send UTF-8")
    return value


class Verified(Struct, frozen=True):
    """A request that its source signed, with its body and the Content-Type as sent."""

    request: web.Request
    source: Source
    proof: Proof
    body: bytes
    content_type: str


def event(verified: Verified, fields: dict[str, Any]) -> NewEvent:
    """Return the one event of a request; `fields` are what its body holds.

    Raises:
        Refusal: 422 if its idempotency key is none.
    """
    headers = verified.request.headers
    key = payload.idempotency_key(_values(verified, fields, headers))
    return _event(verified, verified.body, fields, key, headers)


def batch(verified: Verified) -> list[NewEvent]:
    """Return the events of a batch, each with the exact bytes it has there.

    An `Idempotency-Key` header stands for all: event number n gets it with `/n` appended.

    Raises:
        Refusal: 400 or 422 with every problem of every event.
    """
    whole_key = only(verified.request.headers, "Idempotency-Key")
    if whole_key is not None:
        payload.idempotency_key([whole_key])
        payload.idempotency_key([f"{whole_key}/{MAX_BATCH - 1}"])
    headers = CIMultiDict(verified.request.headers)
    events: list[NewEvent] = []
    wrong: list[Detail] = []
    for index, (text, value) in enumerate(payload.split_batch(verified.body)):
        if whole_key is not None:
            headers["Idempotency-Key"] = f"{whole_key}/{index}"
        path = f"events.{index}"
        try:
            fields = payload.checked_object(value, path)
            key = payload.idempotency_key(_values(verified, fields, headers), f"{path}.")
        except Refusal as refusal:
            wrong.extend(refusal.details)
        else:
            events.append(_event(verified, text, fields, key, headers))
    if wrong:
        raise Refusal(422, "invalid_request", "the request has the wrong shape", tuple(wrong))
    return events


def clashes(events: list[NewEvent]) -> list[int]:
    """Return the indexes of events that repeat a key of this batch with another payload."""
    first: dict[str, NewEvent] = {}
    return [
        index
        for index, each in enumerate(events)
        if first.setdefault(each.id, each).payload != each.payload
    ]


def _values(
    verified: Verified, fields: dict[str, Any], headers: MultiMapping[str]
) -> Iterator[object]:
    """Yield what may be the idempotency key, the first that counts first."""
    for place in verified.source.idempotency_key:
        yield place.value(fields, headers, verified.proof)


def _event(
    verified: Verified,
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
        event_type=payload.event_type(
            place.value(fields, headers, verified.proof) for place in source.event_type
        ),
        idempotency_key=key,
        headers=_kept(verified.request.headers),
    )


def _kept(headers: MultiMapping[str]) -> dict[str, str]:
    """Return the headers worth storing, by their names in lower case; the first of each."""
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
