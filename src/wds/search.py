"""The operators' read routes: search, one event, its exact payload."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web

from wds import queries, schemas
from wds.access import operators_only
from wds.errors import Refusal
from wds.model import Status
from wds.openapi import Operation
from wds.payload import is_json, parse_request

if TYPE_CHECKING:
    from wds.config import Settings
    from wds.queries import Document
    from wds.store import Store


class Search:
    """Handlers over one store's archive and kept counts."""

    def __init__(self, store: Store) -> None:
        """Take the store to read."""
        self._archive = store.archive
        self._rollups = store.rollups
        self._schema = schemas.SearchRequestSchema()

    async def search(self, request: web.Request) -> web.Response:
        """Find events, newest first, and count all that match.

        A page with payloads may be shorter than `limit`: it ends at 8 MiB of them. For the next
        page pass `next_cursor` back as `cursor`; it stays right while events arrive.
        """
        wanted = schemas.load(self._schema, parse_request(await request.read() or b"{}"))
        filters = {
            "statuses": wanted.get("status", ()),
            "event_types": wanted.get("event_type", ()),
            "received_from": wanted.get("from_"),
            "received_to": wanted.get("to"),
        }
        match = queries.search_match(**filters)
        page, more = await self._archive.page(
            match,
            skip=wanted["skip"],
            limit=wanted["limit"],
            after=wanted.get("cursor"),
            include_payload=wanted["include_payload"],
        )
        answer: dict[str, Any] = {
            "next_cursor": schemas.cursor_after(page[-1]["received_at"], page[-1]["_id"])
            if more
            else None
        }
        if wanted["aggregations"]:
            counts = await self._rollups.counts(**filters)
            answer["total"] = sum(each["count"] for each in counts["by_status"])
            answer["aggregations"] = _aggregations(counts)
        else:
            answer["total"] = await self._rollups.total(**filters)
        rest = json.dumps(answer, separators=(",", ":"))
        events = ",".join(_event_json(document) for document in page)
        return _json_text(f'{{"events":[{events}],{rest[1:]}')

    async def event(self, request: web.Request) -> web.Response:
        """Show one event whole: state, attempts, headers, payload."""
        return _json_text(_event_json(await self._found(request)))

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


def operations(store: Store, settings: Settings) -> list[Operation]:
    """Return the operators' routes, guarded."""
    handlers = Search(store)
    found = {200: ("The event", schemas.EventSchema)}
    exact: dict[int, tuple[str, None]] = {200: ("The exact bytes received", None)}
    one = "/webhooks/events/{id}"
    return [
        Operation(
            "POST",
            "/webhooks/search",
            operators_only(handlers.search, settings),
            "Search and count events",
            "operate",
            {200: ("A page of events", schemas.SearchResponseSchema)},
            (400, 401, 403, 408, 413, 422, 503),
            body=schemas.SearchRequestSchema,
            body_required=False,
            example={"status": ["RECEIVED", "DELIVERED"], "limit": 10, "include_payload": True},
        ),
        Operation(
            "GET",
            one,
            operators_only(handlers.event, settings),
            "Show an event",
            "operate",
            found,
            (401, 403, 404, 503),
        ),
        Operation(
            "GET",
            f"{one}/payload",
            operators_only(handlers.payload, settings),
            "Show an event's payload",
            "operate",
            exact,
            (401, 403, 404, 503),
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
            {"hour": _instant(each["_id"]), "count": each["count"]} for each in counts["histogram"]
        ],
    }


def _event_json(document: Document) -> str:
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
        "received_at": _instant(document["received_at"]),
        "finished_at": _instant(document.get("finished_at")),
        "destination": document["destination"],
        "status": document["status"],
        "attempt_count": document["attempt_count"],
        "next_attempt_at": _instant(document.get("next_attempt_at")),
        "trace": document.get("trace"),
        "lease": lease and {"owner": lease["owner"], "since": _instant(lease["since"])},
        "attempts": [
            {**attempt, "timestamp": _instant(attempt["timestamp"])}
            for attempt in document["attempts"]
        ],
    }
    text = json.dumps(event, separators=(",", ":"))
    if "payload" not in document:
        return text
    payload = document["payload"].decode()
    if not is_json(document["content_type"]):
        payload = json.dumps(payload)
    return f'{text[:-1]},"payload":{payload}}}'


def _instant(value: datetime | None) -> str | None:
    """Write an instant as ISO 8601 in UTC with milliseconds."""
    if value is None:
        return None
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json_text(text: str) -> web.Response:
    return web.Response(text=text, content_type="application/json")
