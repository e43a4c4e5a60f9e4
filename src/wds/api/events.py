"""The operators' routes that read events: search, export, one event, its exact payload."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import web

from wds.api import event_schemas
from wds.domain.deliveries import Status
from wds.domain.errors import Refusal, StoreUnavailableError
from wds.encoding import instant_text
from wds.storage import event_queries
from wds.web import schemas
from wds.web.json_body import is_json, parse_request
from wds.web.openapi import Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from wds.domain.event_filter import EventFilter
    from wds.storage.event_reader import EventReader
    from wds.storage.mongo import Document
    from wds.storage.rollups import Rollups

log = structlog.get_logger(__name__)


class EventHandlers:
    """Handlers of the routes that read and count events."""

    def __init__(
        self, reader: EventReader, rollups: Rollups, now: Callable[[], Awaitable[datetime]]
    ) -> None:
        """Read by `reader`, count by `rollups` if they can; `now` returns the database's time."""
        self._reader = reader
        self._rollups = rollups
        self._now = now
        self._schema = event_schemas.SearchRequestSchema()

    async def search(self, request: web.Request) -> web.Response:
        """Find events, in the order of `sort`, and count all that match.

        An event must match all filters, and one value of a filter with several. A page with
        payloads may be shorter than `limit`: it ends at 8 MiB of payload. For the next page, send
        `next_cursor` as `cursor`; no event is repeated or left out while others arrive.
        """
        loaded = schemas.load(self._schema, parse_request(await request.read() or b"{}"))
        event_filter = event_schemas.filter_of(loaded)
        query = event_queries.match(event_filter)
        _, after = loaded.get("cursor", (None, None))
        (page, more), counts = await asyncio.gather(
            self._reader.page(
                query,
                sort=loaded["sort"],
                skip=loaded["skip"],
                limit=loaded["limit"],
                after=after,
                include_payload=loaded["include_payload"],
            ),
            self._counts(event_filter, query, aggregations=loaded["aggregations"]),
        )
        next_cursor = None
        if more:
            last = event_queries.position_of(page[-1])
            next_cursor = event_schemas.cursor_after(last, loaded["sort"])
        answer = {"next_cursor": next_cursor, **counts}
        rest = json.dumps(answer, separators=(",", ":"))
        events = ",".join(event_json(document) for document in page)
        return _json_text(f'{{"events":[{events}],{rest[1:]}')

    async def _counts(
        self, event_filter: EventFilter, query: Document, *, aggregations: bool
    ) -> dict[str, Any]:
        """Count all events that match, by the rollups or from an index."""
        source = self._rollups if event_filter.counted_by_rollups else self._reader
        if not aggregations:
            return {"total": await source.total(query)}
        counts = await source.counts(query)
        total = sum(each["count"] for each in counts["by_status"])
        return {"total": total, "aggregations": _aggregations(counts)}

    async def export(self, request: web.Request) -> web.StreamResponse:
        """Stream every event that matches, one JSON object a line.

        Events that arrive after the request are left out. An answer that ends without its last
        chunk is incomplete: the store failed meanwhile.
        """
        loaded = schemas.load(
            event_schemas.ExportRequestSchema(), parse_request(await request.read() or b"{}")
        )
        query = event_queries.narrow(
            event_queries.match(event_schemas.filter_of(loaded)),
            {"received_at": {"$lt": await self._now()}},
        )
        pages = self._reader.export(
            query, sort=loaded["sort"], include_payload=loaded["include_payload"]
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
        return _json_text(event_json(await self._get(request)))

    async def payload(self, request: web.Request) -> web.Response:
        """Return the payload's exact bytes under its own content type."""
        document = await self._get(request)
        return web.Response(
            body=document["payload"],
            headers={
                "Content-Type": document["content_type"],
                "X-Content-Type-Options": "nosniff",
                "Content-Security-Policy": "sandbox",
            },
        )

    async def _get(self, request: web.Request) -> Document:
        document = await self._reader.get(request.match_info["id"])
        if document is None:
            raise Refusal(404, "not_found", "no event has this id")
        return document


def operations(
    reader: EventReader, rollups: Rollups, now: Callable[[], Awaitable[datetime]]
) -> list[Operation]:
    """Return the routes that read events."""
    handlers = EventHandlers(reader, rollups, now)
    event = {200: ("The event", event_schemas.EventSchema)}
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
        Operation("GET", one, handlers.event, "Show an event", "operate", event, (404, *guarded)),
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
            {"hour": instant_text(each["_id"]), "count": each["count"]}
            for each in counts["histogram"]
        ],
    }


def event_json(document: Document) -> str:
    """Return a stored event as JSON text, with the payload inserted as it was received.

    Parsing and writing the payload again could change numbers, repeated keys and lone surrogates.
    """
    lease = document.get("lease")
    finished_at, next_attempt_at = document.get("finished_at"), document.get("next_attempt_at")
    event = {
        "id": document["_id"],
        "source": document["source"],
        "event_type": document["event_type"],
        "idempotency_key": document.get("idempotency_key"),
        "content_type": document["content_type"],
        "headers": document["headers"],
        "payload_sha256": document["payload_sha256"].hex(),
        "received_at": instant_text(document["received_at"]),
        "finished_at": finished_at and instant_text(finished_at),
        "destination": document["destination"],
        "status": document["status"],
        "attempt_count": document["attempt_count"],
        "next_attempt_at": next_attempt_at and instant_text(next_attempt_at),
        "trace": document.get("trace"),
        "lease": lease and {"owner": lease["owner"], "since": instant_text(lease["since"])},
        "attempts": [
            {**attempt, "timestamp": instant_text(attempt["timestamp"])}
            for attempt in document["attempts"]
        ],
        "attempts_before": document.get("attempts_before", 0),
        "cancelling": "cancelling" in document,
        "history": [
            {**each, "at": instant_text(each["at"])} for each in document.get("history", [])
        ],
    }
    text = json.dumps(event, separators=(",", ":"))
    if "payload" not in document:
        return text
    payload = document["payload"].decode()
    if not is_json(document["content_type"]):
        payload = json.dumps(payload)
    return f'{text[:-1]},"payload":{payload}}}'


def _in_one_line(text: str) -> str:
    """Replace the line breaks of a JSON text, which are white space: its strings have none."""
    return text.replace("\n", " ").replace("\r", " ")


def _json_text(text: str) -> web.Response:
    return web.Response(text=text, content_type="application/json")
