"""The operators' console: all events, one event, its exact payload. Rendered here, no build step.

A page takes the events from an index, in the order of the page; counts come from the covering
index, are shared by all who look, and are left out where they take too long. So a page at a
million events costs what it costs at a thousand, but for counts that are kept.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from aiohttp import web

from wds.api import event_schemas
from wds.console import event_query, histogram
from wds.console.auth import HOME, page
from wds.console.cache import Recall
from wds.console.json_view import pretty, visible
from wds.console.timeline import story
from wds.domain.deliveries import Status
from wds.domain.errors import Refusal, StoreUnavailableError
from wds.domain.events import ID_LENGTH
from wds.domain.lease_queue import BACKLOG_CAP
from wds.storage import event_queries
from wds.storage.rollup_queries import HOUR
from wds.telemetry.metrics import SILENCE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wds.console.event_query import View
    from wds.storage.mongo import Document
    from wds.storage.store import Store

Outcomes = list[tuple[datetime, str, int]]
"""Counts of events by the start of a bar and by status."""
Tally = tuple[tuple[datetime, datetime], Outcomes]
"""From when to when was counted, and what."""

SHOWN_PAYLOAD = 64 * 1024
"""Characters of a payload that its page shows."""
DESTINATION = "default"
FIELDS = (
    ("event_type", "Type", "order.created", "text"),
    ("id_prefix", "Event id begins with", "0197…", "text"),
    ("idempotency_key", "Idempotency key", "", "text"),
    ("source", "Source", "default", "text"),
    ("destination", "Destination", "default", "text"),
    ("min_attempts", "Attempts at least", "", "number"),
    ("last_status_code", "Last answer (0: none)", "503", "number"),
    ("from", "Received from (UTC)", "", "datetime-local"),
    ("to", "Received before (UTC)", "", "datetime-local"),
)
"""Name, title, example and kind of the filters that are typed in."""
NOTICES = {
    "replayed": "It is due again, with the whole retry schedule before it.",
    "cancelled": "It is cancelled; nothing more is sent.",
    "cancelling": "The attempt under way is finished; nothing is sent after it.",
}
_AXIS = (datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC))
_HEX = set("0123456789abcdef")


class Console:
    """Handlers over one store."""

    def __init__(self, store: Store) -> None:
        """Take the store to read."""
        self._store = store
        self._archive = store.reader
        self._outcomes: Recall[Tally | None] = Recall()

    async def find(self, request: web.Request) -> web.StreamResponse:
        """Lead to the event with this id, or to those with this key or beginning of an id."""
        sought = request.query.get("q", "").strip()
        lowered = sought.lower()
        if len(sought) == ID_LENGTH and set(lowered) <= _HEX:
            if await self._archive.get(lowered) is not None:
                raise web.HTTPFound(address(lowered))
            raise web.HTTPFound(event_query.read([("id_prefix", lowered)]).link())
        is_prefix = set(lowered) <= _HEX and len(lowered) >= event_queries.TELLING_PREFIX
        name, value = ("id_prefix", lowered) if is_prefix else ("idempotency_key", sought)
        raise web.HTTPFound(event_query.read([(name, value)]).link())

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Show totals, histogram, replicas and a page of events."""
        asked = event_query.read(request.query.items())
        if any(not value.strip() for value in request.query.values()):
            # A form sends its empty fields too; an address to be shared is better without.
            raise web.HTTPFound(asked.here)
        now, backlog, fleet = await asyncio.gather(
            self._store.now(),
            self._store.queue.backlog(DESTINATION),
            self._store.replicas.fleet(),
        )
        context: dict[str, Any] = {
            **_CHOICES,
            "view": asked,
            "now": now,
            "backlog": backlog,
            "replicas": _replicas(fleet),
            "totals": None,
            "total": None,
            "chart": None,
        }
        if asked.problems:
            return page(request, "events.html", {**context, "events": []}, 422)
        (documents, more), counted = await asyncio.gather(
            self._page(asked, now), self._counts(asked, now)
        )
        if asked.backwards and not more:
            # At the beginning: the first page is fuller, and its address simpler.
            raise web.HTTPFound(asked.link())
        context.update(counted, events=[_row(each) for each in documents])
        context.update(_paging(asked, documents, more=more))
        return page(request, "events.html", context)

    async def _page(self, asked: View, now: datetime) -> tuple[list[Document], bool]:
        sort, after = asked.reading
        documents, more = await self._archive.page(
            event_queries.match(**asked.given(now)),
            sort=sort,
            skip=0,
            limit=asked.loaded["limit"],
            after=after,
            include_payload=False,
        )
        return (documents[::-1] if asked.backwards else documents), more

    async def _counts(self, asked: View, now: datetime) -> dict[str, Any]:
        """Count what the view matches, by bar and status; nothing where that takes too long.

        Counted whatever the status, so that the totals say what choosing another would show.
        """
        start, end = asked.bounds(now)
        end = _drawn(end or now + timedelta(milliseconds=1))
        if start is None:
            oldest = await self._archive.oldest()
            start = oldest or end - timedelta(hours=1)
        span = (min(_drawn(start), end), end)
        bin_ = histogram.bin_for(*span)
        question = tuple(pair for pair in asked.pairs if pair[0] in (*event_query.FILTERS, "range"))
        question = tuple(sorted(pair for pair in question if pair[0] != "status"))
        given = asked.given(now)
        given.pop("status", None)
        match = event_queries.match(**given)

        async def tally() -> Tally | None:
            unit, size = bin_.unit, bin_.size
            try:
                if bin_.length >= HOUR and given.keys() <= event_queries.KEPT:
                    return span, await self._store.rollups.outcomes(match, unit, size)
                return span, await self._archive.outcomes(match, unit, size)
            except StoreUnavailableError:
                return None  # and no sooner asked again than an answer of the same cost

        found = await self._outcomes.ask((question, bin_), tally)
        if found is None:
            return {}
        # The bars are of the range that was counted, which may be a little older than this page.
        drawn, outcomes = found
        totals = dict.fromkeys(Status, 0)
        bars: dict[datetime, dict[str, int]] = {}
        for bar, status, number in outcomes:
            totals[Status(status)] += number
            if not asked.statuses or status in asked.statuses:
                counts = bars.setdefault(histogram.floor(bar, bin_), {})
                counts[status] = counts.get(status, 0) + number
        return {
            "totals": totals,
            "total": sum(sum(each.values()) for each in bars.values()),
            "chart": histogram.chart(bars, *drawn, bin_),
        }

    async def event(self, request: web.Request) -> web.StreamResponse:
        """Show one event whole."""
        event = await self.found(request)
        now = await self._store.now()
        text = event["payload"][: SHOWN_PAYLOAD * 4].decode("utf-8", "replace")
        whole = len(event["payload"]) <= SHOWN_PAYLOAD * 4 and len(text) <= SHOWN_PAYLOAD
        try:
            tokens, tokens_whole = pretty(event["payload"].decode(), SHOWN_PAYLOAD)
        except ValueError:
            tokens, tokens_whole = None, True
        notice = NOTICES.get(request.query.get("notice", ""))
        context = {
            "event": {
                "event_type": None,
                "lease": None,
                "next_attempt_at": None,
                **_SPARSE,
                **event,
            },
            "story": story(event),
            "now": now,
            "tokens": tokens,
            "tokens_whole": tokens_whole,
            "raw": visible(text[:SHOWN_PAYLOAD]),
            "raw_whole": whole,
            "size": len(event["payload"]),
            "sha256": event["payload_sha256"].hex(),
            "notice": notice,
            "can_replay": can_replay(event),
            "can_cancel": can_cancel(event),
        }
        return page(request, "event.html", context)

    async def payload(self, request: web.Request) -> web.StreamResponse:
        """Give the payload's exact bytes as a file, which no browser takes for a page."""
        event = await self.found(request)
        return web.Response(
            body=event["payload"],
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Disposition": f'attachment; filename="{event["_id"]}.json"',
                "Content-Security-Policy": "default-src 'none'; sandbox",
            },
        )

    async def found(self, request: web.Request) -> Document:
        """Return the event that the address names.

        Raises:
            Refusal: 404 if there is none.
        """
        event = await self._archive.get(request.match_info["id"])
        if event is None:
            raise Refusal(404, "not_found", "no event has this id; it may have been deleted by age")
        return {**event, "id": event["_id"]}


_SPARSE: Mapping[str, Any] = {"idempotency_key": None, "finished_at": None}
_CHOICES: Mapping[str, Any] = {
    "statuses": [str(status) for status in Status],
    "ranges": event_query.RANGES,
    "sorts": event_query.SORTS,
    "sizes": event_query.PAGE_SIZES,
    "default_limit": event_query.DEFAULT_LIMIT,
    "fields": FIELDS,
    "due_cap": BACKLOG_CAP,
    "canvas": {"width": histogram.WIDTH, "height": histogram.HEIGHT},
    "newer": None,
    "older": None,
}


def _drawn(instant: datetime) -> datetime:
    """Return the end of an axis: dates have ends too, and bars go beyond what is asked for."""
    return min(max(instant, _AXIS[0]), _AXIS[1])


def address(event_id: str) -> str:
    """Return where an event's page is."""
    return f"{HOME}/events/{event_id}"


def can_replay(event: Document) -> bool:
    """Tell whether a replay would change this event now."""
    tried = event["attempt_count"] > event.get("attempts_before", 0)
    return "lease" not in event and ("next_attempt_at" not in event or tried)


def can_cancel(event: Document) -> bool:
    """Tell whether a cancel would change this event now."""
    return "next_attempt_at" in event and "cancelling" not in event


def _paging(asked: View, documents: list[Document], *, more: bool) -> dict[str, Any]:
    """Return the addresses of the pages on either side, where there are any."""
    words = {"received_at": ("Older", "Newer"), "-received_at": ("Newer", "Older")}
    back, on = words.get(asked.sort, ("Back", "On"))
    titles = {"back_title": back, "on_title": on}
    if not documents:
        return titles
    first, last = (
        event_schemas.cursor_after(event_queries.position_of(each), asked.sort)
        for each in (documents[0], documents[-1])
    )
    return {
        **titles,
        "newer": None if asked.first else asked.link(before=first),
        "older": asked.link(cursor=last) if more or asked.backwards else None,
    }


def _row(event: Document) -> dict[str, Any]:
    return {
        "id": event["_id"],
        "status": event["status"],
        "event_type": event["event_type"],
        "source": event["source"],
        "received_at": event["received_at"],
        "attempt_count": event["attempt_count"],
        "last_attempt": event["attempts"][-1] if event["attempts"] else None,
        "leased": "lease" in event,
        "next_attempt_at": event.get("next_attempt_at"),
    }


def _replicas(fleet: Document) -> list[dict[str, Any]]:
    now = fleet.get("now", datetime.now(UTC))
    return [
        {
            "owner": each["owner"],
            "role": each["role"],
            "seen_at": each["seen_at"],
            "now": now,
            "heard": now - each["seen_at"] < SILENCE,
        }
        for each in sorted(fleet.get("replicas", []), key=lambda one: (one["role"], one["owner"]))
    ]
