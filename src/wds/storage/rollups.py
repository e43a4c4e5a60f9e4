"""Rollups: stored counts of finished events, one document per hour, so that searching stays fast.

Counting a million events takes MongoDB about a second, and operators look at weeks. Finished
events do not change, so their counts are stored. A count then reads the stored hours in its time
span and counts only the events between them, mostly those of the last minutes. The sum is exact.
The counts also show the time spans of matching events, for filters that no index serves.

An event belongs to one hour for ever, by `received_at`. Stored counts are right only if no event
changes after it was counted. The rules for that:

* An hour is counted only up to `MARGIN` before now, by the database's clock. An insert that took
  longer than half of that to be confirmed reopens its hour (`inserted`).
* A span with a live event is not stored.
* A replay reopens the hours of its events before it changes them. A reopened hour is not counted
  for `HOLD`, until long after the events are live; from then on, the live events prevent it.
* If events are deleted some days after they finished, hours older than that are not trusted: their
  events are counted each time. A change of the setting removes all stored counts.
* A replica announces by a token that it counts, and writes only while that token is there. So
  neither a reopening in between nor another counting replica is overlooked.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from typing import TYPE_CHECKING

import structlog

from wds.concurrency.background import beside
from wds.domain.deliveries import LIVE_STATUSES
from wds.domain.errors import StoreUnavailableError
from wds.storage import collection_names, event_queries, indexes, rollup_queries
from wds.storage.mongo import SEARCH_LIMIT_MS, WRITE_BUDGET_S

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from pymongo import UpdateOne

    from wds.storage.mongo import Document, MongoDatabase
    from wds.storage.rollup_queries import Span

log = structlog.get_logger(__name__)

MARGIN = timedelta(minutes=5)
"""Only events received longer ago than this are counted."""
HOLD = timedelta(hours=1)
"""Time for which a reopened hour is not counted."""
DELETION_MARGIN = timedelta(hours=2)
"""Stored counts stop being trusted this long before events of their hour can be deleted."""
INTERVAL_S = 60.0
AT_ONCE = 168
"""Maximum number of hours counted in one batch: a week."""
HOURS_AT_ONCE = (48, 240, 2000)
"""Counted hours in the first, the second and each later read for the spans of events."""
MAX_PAIRS = 2000
"""An hour with more pairs of status and type is not stored; its document would be large."""
MAX_KINDS = 500
"""For an hour with more kinds only the pairs are stored."""
_FIRST_INSTANT = datetime(1, 1, 1, tzinfo=UTC)


class Rollups:
    """The stored counts of one database.

    Every method may raise `StoreUnavailableError`. One that counts raises `SearchTooSlowError` if
    MongoDB ends it at the time limit of a search.
    """

    def __init__(self, mongo: MongoDatabase) -> None:
        """Read and write over `mongo`."""
        self._mongo = mongo
        self._try_for = mongo.try_for
        self._events = mongo.db[collection_names.EVENTS]
        self._hours = mongo.db[rollup_queries.ROLLUPS]
        self._too_many_pairs: set[datetime] = set()
        self._retention: timedelta | None = None

    def keep_for(self, after_s: int | None) -> None:
        """Set the retention period, in seconds after an event ends; None keeps events for ever."""
        self._retention = None if after_s is None else timedelta(seconds=after_s)

    async def forget(self) -> None:
        """Remove all stored counts; they are counted anew."""
        await self._try_for(
            WRITE_BUDGET_S, lambda: self._hours.update_many({}, rollup_queries.forget())
        )

    # -- counts and spans, for searches ----------------------------------------------------

    async def counts(self, query: Document) -> Document:
        """Count events: `by_status`, `by_event_type`, `histogram`, each of `{_id, count}`.

        `query` is from `event_queries.match`, of a filter that is `counted_by_rollups`.
        """
        stored, counted = await self._read(query)
        return rollup_queries.summary(stored, counted)

    async def total(self, query: Document) -> int:
        """Count events as `counts` does, only the total; cheaper."""
        stored, counted = await self._read(query, total_only=True)
        return sum(each["count"] for each in (*stored["total"], *counted))

    async def status_counts(
        self, query: Document, unit: str, bin_size: int
    ) -> list[tuple[datetime, str, int]]:
        """Count events by time and status: `(instant, status, count)`.

        The instant is the start of a bin, as MongoDB's `$dateTrunc` computes it, or of an hour in
        it; a bin is at least an hour long. An instant and status may occur several times.
        """
        stored, counted = await self._read(query, bins=(unit, bin_size))
        return [
            *(
                (each["_id"]["at"], each["_id"]["status"], each["count"])
                for each in stored["status_counts"]
            ),
            *((each["_id"]["hour"], each["_id"]["status"], each["count"]) for each in counted),
        ]

    async def _read(
        self, query: Document, *, total_only: bool = False, bins: tuple[str, int] | None = None
    ) -> tuple[Document, list[Document]]:
        """Return the stored sums of the matching events, and counts of those not stored."""
        span = event_queries.time_span(query)
        pipeline = rollup_queries.read_sums(
            await self._trusted(span), query, total_only=total_only, bins=bins
        )
        [stored] = await self._try_for(0, lambda: self._hours.aggregate(pipeline).to_list(None))
        spans = rollup_queries.uncounted_spans(span, stored["until"])
        if not spans:
            return stored, []
        return stored, await self._count(rollup_queries.count_pairs(spans, query))

    async def _trusted(self, span: Span) -> Span:
        """Return the part of `span` from which no event can have been deleted yet."""
        return max(span[0], await self._trusted_since()), span[1]

    async def _trusted_since(self) -> datetime:
        """Return the first hour from which no event can have been deleted yet."""
        if self._retention is None:
            return _FIRST_INSTANT
        return rollup_queries.hour_of(await self._mongo.now() - self._retention) + DELETION_MARGIN

    async def _count(self, pipeline: list[Document]) -> list[Document]:
        cursor = self._events.aggregate(
            pipeline, hint=indexes.COVERING_INDEX, maxTimeMS=SEARCH_LIMIT_MS
        )
        return await self._mongo.search(lambda: cursor.to_list(None))

    async def spans(
        self, query: Document, *, newest_first: bool
    ) -> AsyncGenerator[tuple[list[Span], int]]:
        """Yield the time spans in which matching events may be, in order; there are none elsewhere.

        With them comes how many matching events the counted hours in them have; there may be more
        in hours that are not counted. The first spans cover few hours and later ones more, so a
        caller that finds enough events early reads little.
        """
        begin, end = event_queries.time_span(query)
        for at_once in chain(HOURS_AT_ONCE, repeat(HOURS_AT_ONCE[-1])):
            counted = await self._counted_hours((begin, end), at_once, newest_first=newest_first)
            part = (begin, end)
            if len(counted) == at_once and newest_first:
                part = (counted[-1]["_id"], end)
            elif len(counted) == at_once:
                part = (begin, counted[-1]["until"])
            hours = await self._event_spans(part, query) if counted else []
            count = sum(each["count"] for each in hours)
            spans = rollup_queries.possible_spans(part, counted, hours, newest_first=newest_first)
            yield spans, count
            if part == (begin, end):
                return
            begin, end = (begin, part[0]) if newest_first else (part[1], end)

    async def _counted_hours(self, span: Span, limit: int, *, newest_first: bool) -> list[Document]:
        """Return the first `limit` hours in `span` with `kinds`; `until` ends their counts."""
        query = rollup_queries.counted_hours(await self._trusted(span))
        cursor = self._hours.find(query, {"until": 1}, batch_size=limit)
        cursor = cursor.sort("_id", -1 if newest_first else 1).limit(limit)
        return await self._try_for(0, lambda: cursor.to_list(None))

    async def _event_spans(self, span: Span, query: Document) -> list[Document]:
        pipeline = rollup_queries.event_spans(span, query, _hold_ms())
        return await self._try_for(0, lambda: self._hours.aggregate(pipeline).to_list(None))

    # -- keeping the counts right ----------------------------------------------------------

    async def reopen(self, instants: Iterable[datetime]) -> None:
        """Remove the counts of the hours of these instants; to be called before events change."""
        hours = sorted(set(map(rollup_queries.hour_of, instants)))
        await self._write([rollup_queries.reopen(hour) for hour in hours])

    async def inserted(self, received_at: datetime, took_s: float) -> None:
        """Reopen the hour of new events whose insert was so slow that it may be counted already."""
        if took_s > MARGIN.total_seconds() / 2:
            await self.reopen([received_at])

    async def _write(self, updates: Sequence[UpdateOne]) -> int:
        """Apply updates to hours; return how many documents changed."""
        written = await self._try_for(0, lambda: self._hours.bulk_write(updates, ordered=False))
        return written.modified_count

    # -- counting ahead --------------------------------------------------------------------

    def advancing(self) -> AbstractAsyncContextManager[None]:
        """Advance about every `INTERVAL_S` inside the block."""
        return beside(self._keep_advancing())

    async def _keep_advancing(self) -> None:
        while True:
            try:
                await self.advance()
            except StoreUnavailableError as error:
                log.warning("counting_delayed", cause=str(error))
            except Exception:
                # A defect here must be logged. It only makes counts slower.
                log.exception("counting_crashed")
            await asyncio.sleep(random.uniform(0.75, 1.25) * INTERVAL_S)  # noqa: S311 - replicas apart

    async def advance(self) -> int:
        """Count all finished events that are not counted yet; return how many hours changed."""
        horizon = (await self._mongo.now() - MARGIN).replace(second=0, microsecond=0)
        extended = 0
        at_once = AT_ONCE
        since = await self._trusted_since()
        if self._retention is not None:
            # One more hour is left: a search may have begun to read it while it was still trusted.
            untrusted = {"_id": {"$lt": since - rollup_queries.HOUR}}
            await self._try_for(0, lambda: self._hours.delete_many(untrusted))
        at = await self._first_received(since)
        while at is not None and at < horizon:
            begin = rollup_queries.hour_of(at)
            batch = [begin + number * rollup_queries.HOUR for number in range(at_once)]
            try:
                extended += await self._extend([hour for hour in batch if hour < horizon], horizon)
            except StoreUnavailableError as error:
                if at_once > 1:
                    at_once = max(at_once // 4, 1)
                    continue
                log.warning("hour_not_counted", hour=begin.isoformat(), cause=str(error))
            at = await self._first_received(begin + at_once * rollup_queries.HOUR)
        return extended

    async def _first_received(self, since: datetime) -> datetime | None:
        """Return when the first event at or after `since` was received; None if there is none."""
        first = await self._try_for(
            0,
            lambda: self._events.find_one(
                {"received_at": {"$gte": since}},
                {"received_at": 1, "_id": 0},
                sort=[("received_at", 1), ("_id", 1)],
            ),
        )
        return None if first is None else first["received_at"]

    async def _extend(self, batch: list[datetime], horizon: datetime) -> int:
        """Extend the counts of consecutive hours up to `horizon`; return how many changed."""
        ends = {hour: min(hour + rollup_queries.HOUR, horizon) for hour in batch}
        announced = await self._begin_counting(await self._countable(batch, ends))
        # Another replica with a later horizon may have extended some hours meanwhile.
        announced = {hour: each for hour, each in announced.items() if each["until"] < ends[hour]}
        if not announced:
            return 0
        spans = rollup_queries.join(
            [(announced[hour]["until"], ends[hour]) for hour in sorted(announced)]
        )
        counted: dict[datetime, list[Document]] = {hour: [] for hour in announced}
        for each in await self._count(rollup_queries.count_kinds(spans)):
            counted[each["_id"]["hour"]].append(each)
        updates = [
            update
            for hour, document in announced.items()
            if (update := self._extended(document, ends[hour], counted[hour])) is not None
        ]
        return await self._write(updates) if updates else 0

    async def _countable(
        self, batch: list[datetime], ends: dict[datetime, datetime]
    ) -> list[datetime]:
        """Return the hours that are not counted up to their end and have no live event."""
        known = await self._try_for(
            0,
            lambda: self._hours.find(
                {"_id": {"$gte": batch[0], "$lte": batch[-1]}}, {"until": 1}
            ).to_list(None),
        )
        until = {hour: hour for hour in batch} | {each["_id"]: each["until"] for each in known}
        return [
            hour
            for hour in batch
            if until[hour] < ends[hour]
            and hour not in self._too_many_pairs
            and not await self._has_live((until[hour], ends[hour]))
        ]

    def _extended(
        self, document: Document, end: datetime, counted: list[Document]
    ) -> UpdateOne | None:
        """Return the update of one hour's document; None if it cannot be counted."""
        if any(each["_id"]["status"] in LIVE_STATUSES for each in counted):
            return None
        hour = document["_id"]
        sums = rollup_queries.add(document["counts"], counted, rollup_queries.PAIR)
        if len(sums) > MAX_PAIRS:
            self._too_many_pairs.add(hour)
            return None
        kinds = None
        if "kinds" in document:
            kinds = rollup_queries.add(document["kinds"], counted, rollup_queries.KIND)
            kinds = kinds if len(kinds) <= MAX_KINDS else None
        return rollup_queries.extend(hour, document["token"], end, sums, kinds)

    async def _has_live(self, span: Span) -> bool:
        """Tell whether `span` has a live event, so that it cannot be counted."""
        found = await self._try_for(
            0,
            lambda: self._events.find_one(
                rollup_queries.live_events(span), {"_id": 1}, hint=rollup_queries.LIVE_INDEX
            ),
        )
        return found is not None

    async def _begin_counting(self, hours: list[datetime]) -> dict[datetime, Document]:
        """Announce that these hours are being counted; return the documents of those granted."""
        if not hours:
            return {}
        token = secrets.token_hex(8)
        await self._write(
            [rollup_queries.begin_counting(hour, token, _hold_ms()) for hour in hours]
        )
        granted = await self._try_for(
            0, lambda: self._hours.find({"_id": {"$in": hours}, "token": token}).to_list(None)
        )
        return {each["_id"]: each for each in granted}


def _hold_ms() -> int:
    return round(HOLD.total_seconds() * 1000)
