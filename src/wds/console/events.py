"""The pages that show events: the list with its counts, one event, and its exact payload.

The list is read from an index in the order of the page, so a page costs the same whether there are
a thousand or a million events.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web

from wds.api import event_schemas
from wds.console import event_query, histogram
from wds.console.json_view import escape_invisible, tokenize_json
from wds.console.paths import event_path
from wds.console.rendering import page
from wds.console.timeline import timeline
from wds.domain.deliveries import Status
from wds.domain.destinations import DEFAULT_DESTINATION
from wds.domain.errors import Refusal
from wds.domain.events import ID_LENGTH
from wds.domain.lease_queue import BACKLOG_CAP
from wds.domain.operator_actions import can_cancel, can_replay
from wds.storage import event_queries
from wds.telemetry.metrics import ALIVE_WITHIN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from wds.console.event_counts import EventCounts
    from wds.console.event_query import EventQuery
    from wds.domain.lease_queue import LeaseQueue
    from wds.storage.event_reader import EventReader
    from wds.storage.mongo import Document
    from wds.storage.replicas import Replicas

MAX_SHOWN_PAYLOAD = 64 * 1024
"""Characters of a payload that its page shows."""
FILTER_FIELDS = (
    ("event_type", "Type", "order.created", "text"),
    ("id_prefix", "Event id starts with", "0197…", "text"),
    ("idempotency_key", "Idempotency key", "", "text"),
    ("source", "Source", "default", "text"),
    ("destination", "Destination", "default", "text"),
    ("min_attempts", "Minimum attempts", "", "number"),
    ("last_status_code", "Last response (0: none)", "503", "number"),
    ("from", "Received from (UTC)", "", "datetime-local"),
    ("to", "Received before (UTC)", "", "datetime-local"),
)
"""Name, label, example and input type of the filters that are typed in."""
NOTICES = {
    "replayed": "The event is due again, with its full retry schedule.",
    "cancelled": "The event is cancelled; nothing more is sent.",
    "cancelling": "The attempt under way is finished; nothing is sent after it.",
}
_HEX = set("0123456789abcdef")


class EventPages:
    """Handlers of the pages that show events."""

    def __init__(
        self,
        reader: EventReader,
        queue: LeaseQueue,
        replicas: Replicas,
        counts: EventCounts,
        now: Callable[[], Awaitable[datetime]],
    ) -> None:
        """Create the handlers; `now` returns the database's time."""
        self._reader = reader
        self._queue = queue
        self._replicas = replicas
        self._counts = counts
        self._now = now

    async def find(self, request: web.Request) -> web.StreamResponse:
        """Redirect to the event with this id, or to a list by id prefix or idempotency key."""
        term = request.query.get("q", "").strip()
        lowered = term.lower()
        if len(term) == ID_LENGTH and set(lowered) <= _HEX:
            if await self._reader.get(lowered) is not None:
                raise web.HTTPFound(event_path(lowered))
            raise web.HTTPFound(event_query.parse([("id_prefix", lowered)]).url_with())
        is_prefix = set(lowered) <= _HEX and len(lowered) >= event_queries.SELECTIVE_PREFIX
        name, value = ("id_prefix", lowered) if is_prefix else ("idempotency_key", term)
        raise web.HTTPFound(event_query.parse([(name, value)]).url_with())

    async def list_events(self, request: web.Request) -> web.StreamResponse:
        """Show totals, histogram, replicas and one page of the list."""
        query = event_query.parse(request.query.items())
        if any(not value.strip() for value in request.query.values()):
            # A browser submits a form's empty fields too. Remove them from the URL.
            raise web.HTTPFound(query.url)
        now, backlog, fleet = await asyncio.gather(
            self._now(), self._queue.backlog(DEFAULT_DESTINATION), self._replicas.fleet()
        )
        context: dict[str, Any] = {
            **_CHOICES,
            "query": query,
            "now": now,
            "backlog": backlog,
            "replicas": _replica_rows(fleet),
            "counts": None,
        }
        if query.problems:
            return page(request, "events.html", {**context, "events": []}, 422)
        (documents, more), counts = await asyncio.gather(
            self._read_page(query, now), self._counts.count(query, now)
        )
        if query.is_backwards and not more:
            # This is the beginning. The first page may have more events, and its URL is simpler.
            raise web.HTTPFound(query.url_with())
        context.update(counts=counts, events=[_event_row(each) for each in documents])
        context.update(_page_links(query, documents, more=more))
        return page(request, "events.html", context)

    async def _read_page(self, query: EventQuery, now: datetime) -> tuple[list[Document], bool]:
        """Return the page's events, in its order, and whether there are more after them."""
        sort, after = query.read_order
        documents, more = await self._reader.page(
            event_queries.match(query.event_filter(now)),
            sort=sort,
            skip=0,
            limit=query.loaded["limit"],
            after=after,
            include_payload=False,
        )
        return (documents[::-1] if query.is_backwards else documents), more

    async def show_event(self, request: web.Request) -> web.StreamResponse:
        """Show one event with its timeline, headers and payload."""
        event = await find_event(self._reader, request)
        context = {
            **_payload_view(event["payload"]),
            "event": {**_OPTIONAL_FIELDS, **event},
            "timeline": timeline(event),
            "now": await self._now(),
            "sha256": event["payload_sha256"].hex(),
            "notice": NOTICES.get(request.query.get("notice", "")),
            "can_replay": can_replay(event),
            "can_cancel": can_cancel(event),
        }
        return page(request, "event.html", context)

    async def download_payload(self, request: web.Request) -> web.StreamResponse:
        """Send the payload's exact bytes as a file, which no browser renders as a page."""
        event = await find_event(self._reader, request)
        return web.Response(
            body=event["payload"],
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Disposition": f'attachment; filename="{event["_id"]}.json"',
                "Content-Security-Policy": "default-src 'none'; sandbox",
            },
        )


_OPTIONAL_FIELDS: Mapping[str, Any] = {
    "event_type": None,
    "lease": None,
    "next_attempt_at": None,
    "idempotency_key": None,
    "finished_at": None,
}
"""Fields of a stored event that may be missing."""
_CHOICES: Mapping[str, Any] = {
    "statuses": [str(status) for status in Status],
    "ranges": event_query.RANGES,
    "sorts": event_query.SORTS,
    "sizes": event_query.PAGE_SIZES,
    "default_limit": event_query.DEFAULT_LIMIT,
    "fields": FILTER_FIELDS,
    "backlog_cap": BACKLOG_CAP,
    "canvas": {"width": histogram.WIDTH, "height": histogram.HEIGHT},
    "previous_url": None,
    "next_url": None,
}


async def find_event(reader: EventReader, request: web.Request) -> Document:
    """Return the event that the request's path names, with its id as `id` too.

    Raises:
        Refusal: 404 if there is none.
    """
    event = await reader.get(request.match_info["id"])
    if event is None:
        raise Refusal(404, "not_found", "no event has this id; it may have been deleted by age")
    return {**event, "id": event["_id"]}


def _payload_view(payload: bytes) -> dict[str, Any]:
    """Return a payload as text and, if it is JSON, formatted; both may be cut."""
    # A character takes at most 4 bytes in UTF-8.
    text = payload[: MAX_SHOWN_PAYLOAD * 4].decode("utf-8", "replace")
    raw_complete = len(payload) <= MAX_SHOWN_PAYLOAD * 4 and len(text) <= MAX_SHOWN_PAYLOAD
    try:
        tokens, tokens_complete = tokenize_json(payload.decode(), MAX_SHOWN_PAYLOAD)
    except ValueError:
        tokens, tokens_complete = None, True
    return {
        "tokens": tokens,
        "tokens_complete": tokens_complete,
        "raw": escape_invisible(text[:MAX_SHOWN_PAYLOAD]),
        "raw_complete": raw_complete,
        "size": len(payload),
    }


def _page_links(query: EventQuery, documents: list[Document], *, more: bool) -> dict[str, Any]:
    """Return titles and URLs of the pages before and after; a URL is None without that page."""
    titles = {"received_at": ("Older", "Newer"), "-received_at": ("Newer", "Older")}
    previous_title, next_title = titles.get(query.sort, ("Previous", "Next"))
    links: dict[str, Any] = {"previous_title": previous_title, "next_title": next_title}
    if not documents:
        return links
    first, last = (
        event_schemas.cursor_after(event_queries.position_of(each), query.sort)
        for each in (documents[0], documents[-1])
    )
    return {
        **links,
        "previous_url": None if query.is_first_page else query.url_with(before=first),
        "next_url": query.url_with(cursor=last) if more or query.is_backwards else None,
    }


def _event_row(event: Document) -> dict[str, Any]:
    return {
        "id": event["_id"],
        "status": event["status"],
        "event_type": event["event_type"],
        "source": event["source"],
        "received_at": event["received_at"],
        "attempt_count": event["attempt_count"],
        "last_attempt": event["attempts"][-1] if event["attempts"] else None,
        "is_leased": "lease" in event,
        "next_attempt_at": event.get("next_attempt_at"),
    }


def _replica_rows(fleet: Document) -> list[dict[str, Any]]:
    now = fleet.get("now", datetime.now(UTC))
    return [
        {
            "owner": each["owner"],
            "role": each["role"],
            "seen_at": each["seen_at"],
            "now": now,
            "is_alive": now - each["seen_at"] < ALIVE_WITHIN,
        }
        for each in sorted(fleet.get("replicas", []), key=lambda one: (one["role"], one["owner"]))
    ]
