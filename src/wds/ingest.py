"""The ingest process: the routes of senders, the operators' API and console, health and metrics.

This module only puts the parts together. `ingestion.handlers` has what a sender's request goes
through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wds.actions.bulk_worker import BulkWorker
from wds.actions.service import ActionService
from wds.api import actions, events
from wds.console import routes as console_routes
from wds.ingestion import routes as ingest_routes
from wds.ingestion.group_writer import GroupWriter
from wds.ingestion.handlers import IngestHandlers
from wds.ingestion.sources import DEFAULT_SOURCE, default_source
from wds.storage.store import Store
from wds.telemetry import heartbeat, tracing
from wds.web import monitoring_routes, openapi, server
from wds.web.body_reader import BodyReader
from wds.web.operator_access import Guard

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Mapping

    from aiohttp import web

    from wds.config import Settings
    from wds.ingestion.sources import Source
    from wds.telemetry.tracing import Tracer


def create_app(
    settings: Settings,
    store: Store,
    sources: Mapping[str, Source] | None = None,
    tracer: Tracer = tracing.OFF,
) -> web.Application:
    """Return the service over an open store, with `sources` beside the default one."""
    body_reader = BodyReader(
        max_body=settings.max_body_bytes,
        budget=settings.body_memory,
        timeout_s=settings.body_timeout,
    )
    guard = Guard(settings)
    app = server.new_app(
        settings.max_body_bytes,
        around=tracer.middlewares,
        inside=[guard.middleware, body_reader.middleware],
    )
    every_source = {**(sources or {}), DEFAULT_SOURCE: default_source(settings.hmac_secrets)}
    writer = GroupWriter(store.writer, tracer)
    handlers = IngestHandlers(every_source, writer, tracer)
    worker = BulkWorker(store.bulk_actions, owner=heartbeat.owner_name())
    service = ActionService(
        store.bulk_actions,
        store.reader,
        store.rollups,
        now=store.now,
        rate_limit=settings.rate_limit,
        wake=worker.wake,
    )

    async def run_bulk_worker(_: web.Application) -> AsyncIterator[None]:
        async with worker.running():
            yield

    async def drain(_: web.Application) -> None:
        await writer.drain()

    operations = [
        *ingest_routes.operations(handlers),
        *events.operations(store.reader, store.rollups, store.now),
        *actions.operations(service),
        *monitoring_routes.operations({"mongodb": store.ping}, ready="Can it store events?"),
    ]
    openapi.register(app, operations, "wds: webhook ingest")
    console_routes.add_to(app, settings, store, service, guard)
    app.cleanup_ctx.append(run_bulk_worker)
    app.on_cleanup.append(drain)
    return app


async def serve(
    settings: Settings,
    sources: Mapping[str, Source],
    stop: asyncio.Event,
    tracer: Tracer = tracing.OFF,
) -> None:
    """Run one ingest process until `stop`; return once every accepted request is answered.

    Raises:
        StartError: the port or the database cannot be used.
    """
    store = Store(settings.mongo_url or "", settings.mongo_db)
    try:
        if not await server.wait_until_open(store.open, stop):
            return
        await store.keep_for(settings.retention_days)
        app = create_app(settings, store, sources, tracer)
        async with (
            heartbeat.reporting(
                store.replicas, store.queue, None, owner=heartbeat.owner_name(), role="ingest"
            ),
            store.rollups.advancing(),
            server.listening(app, settings.host, settings.port),
        ):
            await stop.wait()
    finally:
        await tracer.stop()
        await store.close()
