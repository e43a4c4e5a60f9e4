"""The ingest service: verify, read, store, answer.

A 2xx leaves here only after the store says that the event is majority-committed and
journaled. Everything else is a refusal in the envelope, and sending again is safe: with an
idempotency key it changes nothing.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prometheus_async import aio

from wds import fleet, metrics, openapi, operate, pages, payload, schemas, search, server
from wds.access import Guard
from wds.bulk_worker import BulkWorker, working
from wds.envelope import json_answer
from wds.errors import Detail, Refusal
from wds.group_commit import GroupCommit
from wds.model import Conflict, NewEvent, Receipt, derived_id, random_id
from wds.signature import verify
from wds.store import Store

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Sequence

    from aiohttp import web

    from wds.config import Settings

SOURCE = "default"
SIGNATURE_HEADERS = ("X-Webhook-Signature", "X-Hub-Signature-256")
KEPT_HEADERS = (
    "User-Agent",
    "X-Request-Id",
    "X-Event-Type",
    "X-GitHub-Event",
    "X-GitHub-Delivery",
    "Idempotency-Key",
    "Traceparent",
)
"""Headers stored with an event. A short list: others may carry credentials."""
MAX_KEPT_HEADER = 512
MAX_BATCH_BYTES = 8 * 1024 * 1024
MAX_PENDING_BYTES = 64 * 1024 * 1024
"""What may wait for the store; beyond it senders are told 503 at once."""
_EVENT_OVERHEAD_BYTES = 512


class Ingest:
    """Handlers over one store; concurrent requests share its writes."""

    def __init__(self, settings: Settings, store: Store) -> None:
        """Take the secrets and the store."""
        self._secrets = settings.hmac_secrets
        self._store = store
        self._commits: GroupCommit[NewEvent, Receipt | Conflict] = GroupCommit(
            self._commit,
            weigh=_weight,
            max_batch=MAX_BATCH_BYTES,
            max_pending=MAX_PENDING_BYTES,
        )
        # One request's batch is one transaction: they are queued, never joined.
        self._batches: GroupCommit[tuple[NewEvent, ...], list[Receipt | Conflict]] = GroupCommit(
            self._commit_batch,
            weigh=lambda events: sum(map(_weight, events)),
            max_batch=1,
            max_pending=MAX_PENDING_BYTES,
        )

    @aio.time(metrics.INGEST_SECONDS)
    async def one(self, request: web.Request) -> web.Response:
        """Store one event: 202, or 200 for a repeat of an idempotency key.

        The body is kept byte for byte. The event's type is the payload's `event_type`, else
        its `type`, else the header. Sign the raw body with HMAC-SHA256.
        """
        body, content_type = await self._verified(request)
        value = payload.parse_object(body)
        key = payload.idempotency_key(value, _header(request, "Idempotency-Key"))
        [result] = await self._commits.submit(_event(request, body, content_type, value, key))
        if isinstance(result, Conflict):
            raise _conflict(Detail("idempotency_key", f"belongs to event {result.id}"))
        _count([result])
        return json_answer(_receipt(result), 200 if result.duplicate else 202)

    @aio.time(metrics.INGEST_SECONDS)
    async def batch(self, request: web.Request) -> web.Response:
        """Store 1 to 1,000 events, all or none.

        Stored in one transaction, after every event was checked. An `Idempotency-Key` header
        makes the whole batch repeatable: event number n gets the key with `/n` appended,
        unless it has one of its own. Sign the raw body, as for one event.
        """
        body, content_type = await self._verified(request)
        events = _batch_events(request, body, content_type)
        if clashes := _clashes(events):
            raise _conflict(*map(_clash, clashes))
        [results] = await self._batches.submit(tuple(events))
        if clashes := [n for n, each in enumerate(results) if isinstance(each, Conflict)]:
            raise _conflict(*map(_clash, clashes))
        receipts = [each for each in results if isinstance(each, Receipt)]
        _count(receipts)
        duplicates = sum(receipt.duplicate for receipt in receipts)
        return json_answer(
            {
                "accepted": len(receipts) - duplicates,
                "duplicates": duplicates,
                "events": [_receipt(receipt) for receipt in receipts],
            },
            202,
        )

    async def drain(self) -> None:
        """Return once every accepted body is stored or refused."""
        await self._commits.drain()
        await self._batches.drain()

    async def _commit(self, events: Sequence[NewEvent]) -> list[Receipt | Conflict]:
        metrics.COMMIT_EVENTS.observe(len(events))
        return await aio.time(metrics.COMMIT_SECONDS, self._store.insert(events))

    async def _commit_batch(
        self, batches: Sequence[tuple[NewEvent, ...]]
    ) -> list[list[Receipt | Conflict]]:
        return [
            await aio.time(metrics.COMMIT_SECONDS, self._store.insert_all(events))
            for events in batches
        ]

    async def _verified(self, request: web.Request) -> tuple[bytes, str]:
        """Read the body and return it with its content type, if the sender may be trusted.

        Raises:
            Refusal: 401 for the signature, 415 for the type or encoding.
        """
        body = await request.read()
        given = [value for name in SIGNATURE_HEADERS for value in request.headers.getall(name, ())]
        if not given:
            raise Refusal(401, "missing_signature", f"no {' or '.join(SIGNATURE_HEADERS)} header")
        if not all(verify(self._secrets, body, value) for value in given):
            raise Refusal(
                401, "invalid_signature", "must be sha256= and the hex HMAC-SHA256 of the raw body"
            )
        return body, _content_type(request)


def _weight(event: NewEvent) -> int:
    return len(event.payload) + _EVENT_OVERHEAD_BYTES


def _content_type(request: web.Request) -> str:
    """Return the Content-Type as sent.

    Raises:
        Refusal: 415 if it is not JSON in UTF-8 sent as it is.
    """
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Refusal(415, "unsupported_encoding", "send the body without Content-Encoding")
    value = request.headers.get("Content-Type", "")
    kind = request.content_type
    is_json = kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )
    if not is_json or not (value.isascii() and value.isprintable()):
        raise Refusal(415, "unsupported_media_type", "send Content-Type: application/json")
    charset = (request.charset or "utf-8").strip().lower()
    if charset not in {"utf-8", "utf8", "us-ascii"}:
        raise Refusal(415, "unsupported_charset", "JSON is sent in UTF-8")
    return value


def _batch_events(request: web.Request, body: bytes, content_type: str) -> list[NewEvent]:
    whole_key = _header(request, "Idempotency-Key")
    if whole_key is not None:
        payload.idempotency_key({}, whole_key)
        payload.idempotency_key({}, f"{whole_key}/{payload.MAX_BATCH - 1}")
    events: list[NewEvent] = []
    wrong: list[Detail] = []
    for index, (text, value) in enumerate(payload.split_batch(body)):
        fallback = None if whole_key is None else f"{whole_key}/{index}"
        path = f"events.{index}"
        try:
            checked = payload.checked_object(value, path)
            key = payload.idempotency_key(checked, fallback, f"{path}.")
        except Refusal as refusal:
            wrong.extend(refusal.details)
        else:
            events.append(_event(request, text, content_type, checked, key))
    if wrong:
        raise Refusal(422, "invalid_request", "the request has the wrong shape", tuple(wrong))
    return events


def _event(
    request: web.Request, body: bytes, content_type: str, value: dict[str, Any], key: str | None
) -> NewEvent:
    event_id = (
        random_id(datetime.now(UTC), os.urandom(10)) if key is None else derived_id(SOURCE, key)
    )
    kind = payload.event_type(
        value, _header(request, "X-Event-Type"), _header(request, "X-GitHub-Event")
    )
    kept = {name.lower(): _header(request, name) for name in KEPT_HEADERS}
    return NewEvent(
        id=event_id,
        source=SOURCE,
        payload=body,
        content_type=content_type,
        event_type=kind,
        idempotency_key=key,
        headers={
            name: text
            for name, text in kept.items()
            if text and len(text) <= MAX_KEPT_HEADER and text.isascii() and text.isprintable()
        },
    )


def _clashes(events: list[NewEvent]) -> list[int]:
    """Return the indexes of events that repeat a key of this batch with another payload."""
    first: dict[str, NewEvent] = {}
    return [
        index
        for index, event in enumerate(events)
        if first.setdefault(event.id, event).payload != event.payload
    ]


def _clash(index: int) -> Detail:
    return Detail(f"events.{index}.idempotency_key", "belongs to another payload")


def _conflict(*details: Detail) -> Refusal:
    return Refusal(
        409, "idempotency_conflict", "the idempotency key belongs to another payload", details
    )


def _header(request: web.Request, name: str) -> str | None:
    return request.headers.get(name)


def _receipt(receipt: Receipt) -> dict[str, Any]:
    return {"id": receipt.id, "status": receipt.status, "duplicate": receipt.duplicate}


def _count(receipts: list[Receipt]) -> None:
    repeated = sum(receipt.duplicate for receipt in receipts)
    metrics.EVENTS_REPEATED.inc(repeated)
    metrics.EVENTS_RECEIVED.inc(len(receipts) - repeated)


_SIGNATURE = tuple(
    openapi.header(name, "sha256= and the hex HMAC-SHA256 of the raw body; one of the two")
    for name in SIGNATURE_HEADERS
)
_KEY = openapi.header("Idempotency-Key", "Used where the payload has no idempotency_key")
_TYPE = openapi.header("X-Event-Type", "Used where the payload names no type")
_ERRORS = (400, 401, 409, 413, 415, 422, 503)


def operations(ingest: Ingest, store: Store, operating: operate.Operate) -> list[openapi.Operation]:
    """Return every route of the service but the documents' own."""
    health = {200: ("Yes", schemas.HealthSchema)}
    ready = {**health, 503: ("No", schemas.HealthSchema)}
    return [
        openapi.Operation(
            "POST",
            "/webhooks/ingest",
            ingest.one,
            "Send an event",
            "send",
            {
                202: ("Stored", schemas.ReceiptSchema),
                200: ("Stored before, under this key", schemas.ReceiptSchema),
            },
            _ERRORS,
            body=schemas.PayloadSchema,
            parameters=(*_SIGNATURE, _KEY, _TYPE),
        ),
        openapi.Operation(
            "POST",
            "/webhooks/ingest/batch",
            ingest.batch,
            "Send many events",
            "send",
            {202: ("All stored", schemas.BatchReceiptSchema)},
            _ERRORS,
            body=schemas.BatchSchema,
            parameters=(*_SIGNATURE, _KEY, _TYPE),
        ),
        *search.operations(store),
        *operate.operations(operating),
        openapi.Operation(
            "GET",
            "/metrics",
            server.metrics_page,
            "Prometheus metrics",
            "watch",
            {200: ("Prometheus's text format", None)},
            produces=("text/plain",),
        ),
        openapi.Operation("GET", "/healthz", server.healthz, "Does it live?", "watch", health),
        openapi.Operation(
            "GET",
            "/readyz",
            server.readyz({"mongodb": store.ping}),
            "Can it store events?",
            "watch",
            ready,
        ),
    ]


def create_app(settings: Settings, store: Store) -> web.Application:
    """Return the service over an open store."""
    app = server.new_app(settings.max_body_bytes)
    guard = Guard(settings)
    app.middlewares.append(guard.middleware)
    ingest = Ingest(settings, store)
    worker = BulkWorker(store.bulk, owner=fleet.owner_name())
    operating = operate.Operate(settings, store, worker.wake)

    async def drain(_: web.Application) -> None:
        await ingest.drain()

    async def work(_: web.Application) -> AsyncIterator[None]:
        async with working(worker):
            yield

    openapi.register(app, operations(ingest, store, operating))
    openapi.serve_docs(app, "wds: webhook ingest")
    pages.add_to(app, settings, store, operating, guard)
    app.cleanup_ctx.append(work)
    app.on_cleanup.append(drain)
    return app


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Run one ingest process until `stop`; returns when all it accepted is answered.

    Raises:
        StartError: the port or the database cannot be used.
    """
    store = Store(settings.mongo_url or "", settings.mongo_db)
    try:
        if not await server.opened(store, stop):
            return
        await store.keep_for(settings.retention_days)
        app = create_app(settings, store)
        async with (
            fleet.reporting(store, None, owner=fleet.owner_name(), role="ingest"),
            store.rollups.advancing(),
            server.listening(app, settings.host, settings.port),
        ):
            await stop.wait()
    finally:
        await store.close()
