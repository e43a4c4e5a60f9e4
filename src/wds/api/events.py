"""The operators' read routes: search, export, one event, its exact payload."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import web

from wds.api import event_schemas
from wds.domain.deliveries import Status
from wds.domain.errors import Refusal, StoreUnavailableError
from wds.ingestion.payload import is_json, parse_request
from wds.storage import event_queries
from wds.web import schemas
from wds.web.openapi import Operation

if TYPE_CHECKING:
    from wds.storage.mongo import Document
    from wds.storage.store import Store

log = structlog.get_logger(__name__)


class Search:
    """Handlers over one store's archive and kept counts."""

    def __init__(self, store: Store) -> None:
        """Take the store to read."""
        self._archive = store.reader
        self._rollups = store.rollups
        self._now = store.now
        self._schema = event_schemas.SearchRequestSchema()

    async def search(self, request: web.Request) -> web.Response:
        """Find events, in the order asked for, and count all that match.

        All filters must hold; of several values one must fit. A page with payloads may be shorter
        than `limit`: it ends at 8 MiB of them. For the next page pass `next_cursor` back as
        `cursor`; it stays right while events arrive.
        """
        wanted = schemas.load(self._schema, parse_request(await request.read() or b"{}"))
        given = event_schemas.filters_of(wanted)
        match = event_queries.match(**given)
        _, after = wanted.get("cursor", (None, None))
        (page, more), counts = await asyncio.gather(
            self._archive.page(
                match,
                sort=wanted["sort"],
                skip=wanted["skip"],
                limit=wanted["limit"],
                after=after,
                include_payload=wanted["include_payload"],
            ),
            self._counts(
                match, kept=given.keys() <= event_queries.KEPT, aggregations=wanted["aggregations"]
            ),
        )
        next_cursor = None
        if more:
            next_cursor = event_schemas.cursor_after(
                event_queries.position_of(page[-1]), wanted["sort"]
            )
        answer = {"next_cursor": next_cursor, **counts}
        rest = json.dumps(answer, separators=(",", ":"))
        events = ",".join(event_json(document) for document in page)
        return _json_text(f'{{"events":[{events}],{rest[1:]}')

    async def _counts(self, match: Document, *, kept: bool, aggregations: bool) -> dict[str, Any]:
        """Count all that matches, from what is `kept` of such filters or from an index."""
        source = self._rollups if kept else self._archive
        if not aggregations:
            return {"total": await source.total(match)}
        counts = await source.counts(match)
        total = sum(each["count"] for each in counts["by_status"])
        return {"total": total, "aggregations": _aggregations(counts)}

    async def export(self, request: web.Request) -> web.StreamResponse:
        """Stream every event that matches, one JSON object a line.

        What arrives after the request is left out. An answer that ends without its last chunk is
        not whole: the store failed meanwhile.
        """
        wanted = schemas.load(
            event_schemas.ExportRequestSchema(), parse_request(await request.read() or b"{}")
        )
        match = event_queries.narrowed(
            event_queries.match(**event_schemas.filters_of(wanted)),
            {"received_at": {"$lt": await self._now()}},
        )
        pages = self._archive.export(
            match, sort=wanted["sort"], include_payload=wanted["include_payload"]
        )
        async with aclosing(pages):
            # The first page is read before the status is sent, so that it can still be a 503.
            page: list[Document] = await anext(pages, [])
            response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            await response.prepare(request)
            try:
                while page:
                    lines = "".join(f"{_in_one_line(event_json(each))}\n" for each in page)
                    await response.write(lines.encode())
                    page = await anext(pages, [])
            except StoreUnavailableError as error:
                log.warning("export_cut_short", cause=str(error))
                if request.transport is not None:
                    request.transport.abort()
            except ConnectionError:
                log.info("export_left", consequence="the client is gone")
        return response

    async def event(self, request: web.Request) -> web.Response:
        """Show one event whole: state, attempts, history, headers, payload."""
        return _json_text(event_json(await self._found(request)))

    async def payload(self, request: web.Request) -> web.Response:
        """Return the payload's exact bytes under its own content type."""
        document = await self._found(request)
        return web.Response(
            body=document["payload"],
            headers={
                "Content-Type": document["content_type"],
                "X-Content-Type-Options": "nosniff",
                "Content-Security-Policy": "sandbox",
            },
        )

    async def _found(self, request: web.Request) -> Document:
        document = await self._archive.get(request.match_info["id"])
        if document is None:
            raise Refusal(404, "not_found", "no event has this id")
        return document


def operations(store: Store) -> list[Operation]:
    """Return the operators' routes for reading."""
    handlers = Search(store)
    found = {200: ("The event", event_schemas.EventSchema)}
    exact: dict[int, tuple[str, None]] = {200: ("The exact bytes received", None)}
    lines: dict[int, tuple[str, None]] = {200: ("An event a line", None)}
    one = "/webhooks/events/{id}"
    guarded = (401, 403, 429, 503)
    return [
        Operation(
            "POST",
            "/webhooks/search",
            handlers.search,
            "Search and count events",
            "operate",
            {200: ("A page of events", event_schemas.SearchResponseSchema)},
            (400, 408, 413, 422, *guarded),
            body=event_schemas.SearchRequestSchema,
            body_required=False,
            example={"status": ["RECEIVED", "DELIVERED"], "limit": 10, "include_payload": True},
        ),
        Operation(
            "POST",
            "/webhooks/export",
            handlers.export,
            "Export events",
            "operate",
            lines,
            (400, 413, 422, *guarded),
            body=event_schemas.ExportRequestSchema,
            produces=("application/x-ndjson",),
        ),
        Operation("GET", one, handlers.event, "Show an event", "operate", found, (404, *guarded)),
        Operation(
            "GET",
            f"{one}/payload",
            handlers.payload,
            "Show an event's payload",
            "operate",
            exact,
            (404, *guarded),
            produces=("application/x-www-form-urlencoded",),
        ),
    ]


def _aggregations(counts: Document) -> dict[str, Any]:
    by_status = dict.fromkeys(map(str, Status), 0)
    by_status.update({each["_id"]: each["count"] for each in counts["by_status"]})
    return {
        "by_status": by_status,
        "by_event_type": {each["_id"]: each["count"] for each in counts["by_event_type"]},
        "histogram": [
            {"hour": instant(each["_id"]), "count": each["count"]} for each in counts["histogram"]
        ],
    }


def event_json(document: Document) -> str:
    """Return an event as JSON text; the payload is spliced in as it was received.

    Reading and writing it again could change numbers, repeated keys and lone surrogates.
    """
    lease = document.get("lease")
    event = {
        "id": document["_id"],
        "source": document["source"],
        "event_type": document["event_type"],
        "idempotency_key": document.get("idempotency_key"),
        "content_type": document["content_type"],
        "headers": document["headers"],
        "payload_sha256": document["payload_sha256"].hex(),
        "received_at": instant(document["received_at"]),
        "finished_at": instant(document.get("finished_at")),
        "destination": document["destination"],
        "status": document["status"],
        "attempt_count": document["attempt_count"],
        "next_attempt_at": instant(document.get("next_attempt_at")),
        "trace": document.get("trace"),
        "lease": lease and {"owner": lease["owner"], "since": instant(lease["since"])},
        "attempts": [
            {**attempt, "timestamp": instant(attempt["timestamp"])}
            for attempt in document["attempts"]
        ],
        "attempts_before": document.get("attempts_before", 0),
        "cancelling": "cancelling" in document,
        "history": [{**each, "at": instant(each["at"])} for each in document.get("history", [])],
    }
    text = json.dumps(event, separators=(",", ":"))
    if "payload" not in document:
        return text
    payload = document["payload"].decode()
    if not is_json(document["content_type"]):
        payload = json.dumps(payload)
    return f'{text[:-1]},"payload":{payload}}}'


def _in_one_line(text: str) -> str:
    """Replace line breaks in a JSON text: strings have none, so they are white space."""
    return text.replace("\n", " ").replace("\r", " ")


def instant(value: datetime | None) -> str | None:
    """Write an instant as ISO 8601 in UTC with milliseconds."""
    if value is None:
        return None
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json_text(text: str) -> web.Response:
    return web.Response(text=text, content_type="application/json")
