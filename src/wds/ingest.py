"""The ingest service: verify, read, store, answer.

A 2xx leaves here only after the store says that the event is majority-committed and
journaled. Everything else is a refusal in the envelope, and sending again is safe: with an
idempotency key it changes nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from aiohttp import web
from prometheus_async import aio

from wds.actions.bulk_worker import BulkWorker, working
from wds.api import actions, events as api_events
from wds.concurrency.group_commit import GroupCommit
from wds.console import routes
from wds.domain.errors import Detail, Refusal
from wds.domain.events import MAX_LABEL, Conflict, NewEvent, Receipt
from wds.ingestion import event_parser, payload, schemas as ingestion_schemas
from wds.ingestion.event_parser import Verified
from wds.ingestion.sources import DEFAULT, default
from wds.signing.schemes import SCHEMES, SLACK, WDS
from wds.storage.store import Store
from wds.telemetry import event_log, heartbeat, metrics, tracing
from wds.web import openapi, schemas, server
from wds.web.body_reader import Intake
from wds.web.error_envelope import json_answer
from wds.web.operator_access import Guard

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Mapping, Sequence

    from wds.config import Settings
    from wds.ingestion.sources import Source
    from wds.telemetry.tracing import Tracer

MAX_BATCH_BYTES = 8 * 1024 * 1024
MAX_PENDING_BYTES = 64 * 1024 * 1024
"""What may wait for the store; beyond it senders are told 503 at once."""
OVERLAPPING = 2
"""Inserts in flight at once: MongoDB works on one while the next is read and parsed."""
WORTH_OVERLAPPING = 8
"""Events that another insert beside one in flight is worth: fewer always wait for the next."""
MAX_WAIT_S = 2.0
"""Once one write takes longer than this, senders are told 503 before they wait for the next."""
MAX_CHALLENGE = 512
_OF_CHALLENGE = ("type", "challenge")
_EVENT_OVERHEAD_BYTES = 512


class Ingest:
    """Handlers over one store; concurrent requests share its writes."""

    def __init__(self, sources: Mapping[str, Source], store: Store, tracer: Tracer) -> None:
        """Take the sources, `default` among them, the store and what records traces."""
        self._sources = sources
        self._verified_by = {
            source.name: [
                metrics.SIGNATURES_VERIFIED.labels(source.name, str(place))
                for place, _ in enumerate(source.keys, 1)
            ]
            for source in sources.values()
        }
        self._store = store
        self._tracer = tracer
        self._commits: GroupCommit[NewEvent, Receipt | Conflict] = GroupCommit(
            self._commit,
            weigh=_weight,
            max_batch=MAX_BATCH_BYTES,
            max_pending=MAX_PENDING_BYTES,
            max_wait_s=MAX_WAIT_S,
            max_in_flight=OVERLAPPING,
            min_parallel_batch=WORTH_OVERLAPPING,
        )
        # One request's batch is one transaction: they are queued, never joined.
        self._batches: GroupCommit[tuple[NewEvent, ...], list[Receipt | Conflict]] = GroupCommit(
            self._commit_batch,
            weigh=lambda events: sum(map(_weight, events)),
            max_batch=1,
            max_pending=MAX_PENDING_BYTES,
            max_wait_s=MAX_WAIT_S,
        )

    @aio.time(metrics.INGEST_SECONDS)
    async def one(self, request: web.Request) -> web.Response:
        """Store one event: 202, or 200 for a repeat of an idempotency key.

        The body is kept byte for byte. The event's type is the payload's `event_type`, else
        its `type`, else the header. Sign the raw body with HMAC-SHA256.
        """
        return await self._take(request, self._sources[DEFAULT])

    @aio.time(metrics.INGEST_SECONDS)
    async def named(self, request: web.Request) -> web.Response:
        """Store one event of a configured source: 202, or 200 for a repeat.

        Signature, event type and idempotency key are where its provider puts them. Slack's
        `url_verification` is answered with the challenge and not stored; a form from Slack is
        answered 200 without a body, which shows its user nothing.
        """
        source = self._sources.get(request.match_info["source"])
        if source is None:
            raise Refusal(404, "unknown_source", "no source has this name")
        return await self._take(request, source)

    async def _take(self, request: web.Request, source: Source) -> web.Response:
        verified = await self._verified(request, source)
        is_form = payload.is_form(verified.content_type)
        read = payload.form_members if is_form else payload.members
        names = (*source.members, *_OF_CHALLENGE) if source.scheme is SLACK else source.members
        fields = read(verified.body, names)
        if source.scheme is SLACK and fields.get("type") == "url_verification":
            return json_answer({"challenge": _challenge(fields)})
        event = event_parser.event(verified, fields)
        # One may be all of the body, and parsed twenty times as large as what the budget counts.
        del fields
        with self._tracer.sending([event]) as [traced], event_log.unless_acknowledged([event]):
            [result] = await self._commits.submit(traced)
        if isinstance(result, Conflict):
            if not source.vouches:
                raise _conflict(
                    Detail("idempotency_key", f"belongs to event {result.id}"), event_id=result.id
                )
            result = Receipt(result.id, result.status, duplicate=True)
        event_log.acknowledged([event], [result])
        if source.scheme is SLACK and is_form:
            return web.Response()
        return json_answer(_receipt(result), 200 if result.duplicate else 202)

    @aio.time(metrics.INGEST_SECONDS)
    async def batch(self, request: web.Request) -> web.Response:
        """Store 1 to 1,000 events, all or none.

        Stored in one transaction, after every event was checked. An `Idempotency-Key` header
        makes the whole batch repeatable: event number n gets the key with `/n` appended,
        unless it has one of its own. Sign the raw body, as for one event.
        """
        events = event_parser.batch(await self._verified(request, self._sources[DEFAULT]))
        if clashes := event_parser.clashes(events):
            raise _conflict(*map(_clash, clashes))
        with self._tracer.sending(events) as traced, event_log.unless_acknowledged(events):
            [results] = await self._batches.submit(tuple(traced))
        if clashes := [n for n, each in enumerate(results) if isinstance(each, Conflict)]:
            raise _conflict(*map(_clash, clashes))
        receipts = [each for each in results if isinstance(each, Receipt)]
        event_log.acknowledged(events, receipts)
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
        with self._tracer.inserting(events):
            return await aio.time(metrics.COMMIT_SECONDS, self._store.writer.insert(events))

    async def _commit_batch(
        self, batches: Sequence[tuple[NewEvent, ...]]
    ) -> list[list[Receipt | Conflict]]:
        results = []
        for events in batches:
            with self._tracer.inserting(events):
                results.append(
                    await aio.time(metrics.COMMIT_SECONDS, self._store.writer.insert_all(events))
                )
        return results

    async def _verified(self, request: web.Request, source: Source) -> Verified:
        """Read the body and return it, if the source signed it.

        Raises:
            Refusal: 400, 401 and 415, see `schemes.verify` and `incoming.content_type`.
        """
        body = await request.read()
        proof = source.verify(request.headers, body, time.time())
        self._verified_by[source.name][proof.secret].inc()
        content_type = event_parser.content_type(request, forms=source.scheme.forms)
        return Verified(request, source, proof, body, content_type)


def _weight(event: NewEvent) -> int:
    return len(event.payload) + _EVENT_OVERHEAD_BYTES


def _challenge(fields: Mapping[str, Any]) -> str:
    challenge = fields.get("challenge")
    if not (
        isinstance(challenge, str) and len(challenge) <= MAX_CHALLENGE and challenge.isprintable()
    ):
        text = f"must be a string of at most {MAX_CHALLENGE} printable characters"
        detail = Detail("challenge", text)
        raise Refusal(422, "invalid_request", "the request has the wrong shape", (detail,))
    return challenge


def _clash(index: int) -> Detail:
    return Detail(f"events.{index}.idempotency_key", "belongs to another payload")


def _conflict(*details: Detail, event_id: str | None = None) -> Refusal:
    return Refusal(
        409,
        "idempotency_conflict",
        "the idempotency key belongs to another payload",
        details,
        event_id=event_id,
    )


def _receipt(receipt: Receipt) -> dict[str, Any]:
    return {"id": receipt.id, "status": receipt.status, "duplicate": receipt.duplicate}


_SIGNATURE = tuple(openapi.header(name, f"{WDS.form}; one of the two") for name in WDS.headers)
_KEY = openapi.header(
    "Idempotency-Key",
    "Used where the payload has no idempotency_key; printable characters",
    minLength=1,
    maxLength=MAX_LABEL,
)
_EXAMPLE = {"event_type": "order.created", "idempotency_key": "order-1042", "total": 99.5}
_SOURCE_HEADERS = tuple(
    openapi.header(header, f"Scheme {scheme.name}: {scheme.form}")
    for scheme in SCHEMES.values()
    for header in scheme.headers
    if scheme is not WDS
)
_TYPE = openapi.header("X-Event-Type", "Used where the payload names no type")
_ERRORS = (400, 401, 408, 409, 413, 415, 422, 503)


def operations(ingest: Ingest, store: Store, operating: actions.Operate) -> list[openapi.Operation]:
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
                202: ("Stored", ingestion_schemas.ReceiptSchema),
                200: ("Stored before, under this key", ingestion_schemas.ReceiptSchema),
            },
            _ERRORS,
            body=ingestion_schemas.PayloadSchema,
            example=_EXAMPLE,
            parameters=(*_SIGNATURE, _KEY, _TYPE),
        ),
        openapi.Operation(
            "POST",
            "/webhooks/ingest/batch",
            ingest.batch,
            "Send many events",
            "send",
            {202: ("All stored", ingestion_schemas.BatchReceiptSchema)},
            _ERRORS,
            body=ingestion_schemas.BatchSchema,
            example={"events": [_EXAMPLE, {"type": "ping"}]},
            parameters=(*_SIGNATURE, _KEY, _TYPE),
        ),
        openapi.Operation(
            "POST",
            "/webhooks/ingest/{source}",
            ingest.named,
            "Send an event as a configured source",
            "send",
            {
                202: ("Stored", ingestion_schemas.ReceiptSchema),
                200: (
                    "Stored before, or a challenge answered",
                    ingestion_schemas.SourceAnswerSchema,
                ),
            },
            (404, *_ERRORS),
            body=ingestion_schemas.PayloadSchema,
            example=_EXAMPLE,
            parameters=_SOURCE_HEADERS,
        ),
        *api_events.operations(store),
        *actions.operations(operating),
        openapi.Operation(
            "GET",
            "/metrics",
            server.metrics_page,
            "Prometheus metrics",
            "watch",
            {200: ("Prometheus's text format", None)},
            produces=("text/plain", "application/openmetrics-text"),
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


def create_app(
    settings: Settings,
    store: Store,
    sources: Mapping[str, Source] | None = None,
    tracer: Tracer = tracing.OFF,
) -> web.Application:
    """Return the service over an open store, with `sources` beside the default one."""
    intake = Intake(
        max_body=settings.max_body_bytes,
        budget=settings.body_memory,
        timeout_s=settings.body_timeout,
    )
    guard = Guard(settings)
    app = server.new_app(
        settings.max_body_bytes,
        around=tracer.middlewares,
        inside=[guard.middleware, intake.middleware],
    )
    named = {**(sources or {}), DEFAULT: default(settings.hmac_secrets)}
    ingest = Ingest(named, store, tracer)
    worker = BulkWorker(store.bulk_actions, owner=heartbeat.owner_name())
    operating = actions.Operate(settings, store, worker.wake)

    async def drain(_: web.Application) -> None:
        await ingest.drain()

    async def work(_: web.Application) -> AsyncIterator[None]:
        async with working(worker):
            yield

    openapi.register(app, operations(ingest, store, operating))
    openapi.serve_document(app, "wds: webhook ingest")
    routes.add_to(app, settings, store, operating, guard)
    app.cleanup_ctx.append(work)
    app.on_cleanup.append(drain)
    return app


async def serve(
    settings: Settings,
    sources: Mapping[str, Source],
    stop: asyncio.Event,
    tracer: Tracer = tracing.OFF,
) -> None:
    """Run one ingest process until `stop`; returns when all it accepted is answered.

    Raises:
        StartError: the port or the database cannot be used.
    """
    store = Store(settings.mongo_url or "", settings.mongo_db)
    try:
        if not await server.opened(store, stop):
            return
        await store.keep_for(settings.retention_days)
        app = create_app(settings, store, sources, tracer)
        async with (
            heartbeat.reporting(store.replicas, None, owner=heartbeat.owner_name(), role="ingest"),
            store.rollups.advancing(),
            server.listening(app, settings.host, settings.port),
        ):
            await stop.wait()
    finally:
        await tracer.stop()
        await store.close()
