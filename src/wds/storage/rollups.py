"""Counts of what no longer changes, kept an hour a document, so that searching stays fast.

Counting a million events takes MongoDB about a second, and operators look at ranges of weeks.
Finished events do not change, so their counts are kept: a count then reads the kept hours that
lie in the range and counts only what is between them, which is mostly the last minutes. The sum
is exact. The same counts tell where in time there are events that no index holds together.

An event belongs to one hour for ever, by `received_at`; for the kept counts of an hour to be
right, nothing counted in it may change afterwards. That is so because:

* An hour is counted only up to `MARGIN` before now, by the database's clock. An insert that took
  longer than half of that to be confirmed reopens its hour (`inserted`).
* A stretch that holds a live event is not kept.
* Whoever makes finished events live again reopens their hours first. A reopened hour is not
  counted for `HOLD`, long after the events are live; then they keep it from being counted.
* Where events are deleted some days after they finished, hours older than that many days are not
  trusted: what is left of them is counted. A change of the setting forgets all that is kept.
* Counting announces itself by a token before it reads and writes only while that is still there,
  so a reopening in between is never overlooked, nor another replica that does the same.
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
from wds.domain.errors import StoreUnavailableError
from wds.storage import collection_names, event_queries, indexes, rollup_queries
from wds.storage.mongo import SEARCH_LIMIT_MS, WRITE_BUDGET_S

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable
    from contextlib import AbstractAsyncContextManager

    from wds.storage.mongo import Document, MongoDatabase
    from wds.storage.rollup_queries import Span

log = structlog.get_logger(__name__)

MARGIN = timedelta(minutes=5)
"""Only events received longer ago than this are counted for keeping."""
HOLD = timedelta(hours=1)
"""How long a reopened hour is left alone."""
DELETION_MARGIN = timedelta(hours=2)
"""How much longer than events are kept an hour must be whole, for its counts to be trusted."""
INTERVAL_S = 60.0
AT_ONCE = 168
"""Most hours counted in one go: a week."""
HOURS_AT_ONCE = (48, 240, 2000)
"""Kept hours read in one go to see where events are, at first and later."""
MAX_PAIRS = 2000
"""An hour with more pairs of status and type than this is not kept; its document would be large."""
MAX_KINDS = 500
"""Of an hour with more kinds only the pairs are kept."""
_FIRST_INSTANT = datetime(1, 1, 1, tzinfo=UTC)


class Rollups:
    """The kept counts of one database. What MongoDB does not confirm is `StoreUnavailableError`.

    What it ends at the time limit of a search is `SearchTooSlowError`.
    """

    def __init__(self, mongo: MongoDatabase) -> None:
        """Take the connection to use."""
        self._mongo = mongo
        self._try_for = mongo.try_for
        self._events = mongo.db[collection_names.EVENTS]
        self._hours = mongo.db[rollup_queries.HOURS]
        self._too_many_pairs: set[datetime] = set()
        self._kept_for: timedelta | None = None

    def keep_for(self, after_s: int | None) -> None:
        """Know that events are deleted so long after they finished; None for never."""
        self._kept_for = None if after_s is None else timedelta(seconds=after_s)

    async def forget(self) -> None:
        """Forget all kept counts; they are made anew."""
        await self._try_for(
            WRITE_BUDGET_S, lambda: self._hours.update_many({}, rollup_queries.forget())
        )

    async def _whole_since(self) -> datetime:
        """Return the hour from which on no event can have been deleted yet."""
        if self._kept_for is None:
            return _FIRST_INSTANT
        return rollup_queries.start_of(await self._mongo.now() - self._kept_for) + DELETION_MARGIN

    async def counts(self, wanted: Document) -> Document:
        """Count events: `by_status`, `by_event_type`, `histogram`, each of `{_id, count}`.

        `wanted` is from `filters.match`, of `filters.KEPT` only.
        """
        kept, tallied = await self._read(wanted)
        return rollup_queries.summary(kept, tallied)

    async def total(self, wanted: Document) -> int:
        """Count events as `counts` does, only all together; cheaper."""
        kept, tallied = await self._read(wanted, total_only=True)
        return sum(each["count"] for each in (*kept["total"], *tallied))

    async def outcomes(
        self, wanted: Document, unit: str, bin_size: int
    ) -> list[tuple[datetime, str, int]]:
        """Count events by time and status: `(when, status, count)`, several for the same possible.

        `when` is the start of a bin or of an hour in it; bins, by MongoDB's reckoning, are not
        shorter than an hour.
        """
        kept, tallied = await self._read(wanted, bins=(unit, bin_size))
        return [
            *(
                (each["_id"]["at"], each["_id"]["status"], each["count"])
                for each in kept["outcomes"]
            ),
            *((each["_id"]["hour"], each["_id"]["status"], each["count"]) for each in tallied),
        ]

    async def _read(
        self, wanted: Document, *, total_only: bool = False, bins: tuple[str, int] | None = None
    ) -> tuple[Document, list[Document]]:
        """Return what is kept of the wanted, and what is tallied of the rest."""
        span = event_queries.span_of(wanted)
        pipeline = rollup_queries.covered(
            await self._whole(span), wanted, total_only=total_only, bins=bins
        )
        [kept] = await self._try_for(0, lambda: self._hours.aggregate(pipeline).to_list(None))
        spans = rollup_queries.gaps(span, kept["until"])
        if not spans:
            return kept, []
        return kept, await self._tally(rollup_queries.tally(spans, wanted))

    async def _whole(self, span: Span) -> Span:
        """Return the part of `span` from which no event can have been deleted yet."""
        return max(span[0], await self._whole_since()), span[1]

    async def _tally(self, pipeline: list[Document]) -> list[Document]:
        counted = self._events.aggregate(
            pipeline, hint=indexes.COVERING_INDEX, maxTimeMS=SEARCH_LIMIT_MS
        )
        return await self._mongo.search(lambda: counted.to_list(None))

    async def where(
        self, wanted: Document, *, newest_first: bool
    ) -> AsyncGenerator[tuple[list[Span], int]]:
        """Yield where in time the wanted events may be, in order; nowhere else is any.

        With the spans comes how many of the events are known to be in them: not those of hours that
        are not kept. The first spans are of few hours, later ones of ever more, so that who finds
        enough in the first reads no more.
        """
        begin, end = event_queries.span_of(wanted)
        for at_once in chain(HOURS_AT_ONCE, repeat(HOURS_AT_ONCE[-1])):
            kept = await self._kept_in((begin, end), at_once, newest_first=newest_first)
            part = (begin, end)
            if len(kept) == at_once and newest_first:
                part = (kept[-1]["_id"], end)
            elif len(kept) == at_once:
                part = (begin, kept[-1]["until"])
            found = await self._found_in(part, wanted) if kept else []
            known = sum(each["count"] for each in found)
            yield rollup_queries.places(part, kept, found, newest_first=newest_first), known
            if part == (begin, end):
                return
            begin, end = (begin, part[0]) if newest_first else (part[1], end)

    async def _kept_in(self, span: Span, limit: int, *, newest_first: bool) -> list[Document]:
        """Return the first `limit` hours in `span` whose kinds are kept, and how far: `until`."""
        wanted = rollup_queries.kept_in(await self._whole(span))
        found = self._hours.find(wanted, {"until": 1}, batch_size=limit)
        found = found.sort("_id", -1 if newest_first else 1).limit(limit)
        return await self._try_for(0, lambda: found.to_list(None))

    async def _found_in(self, span: Span, wanted: Document) -> list[Document]:
        hold_ms = round(HOLD.total_seconds() * 1000)
        pipeline = rollup_queries.stretches(span, wanted, hold_ms)
        return await self._try_for(0, lambda: self._hours.aggregate(pipeline).to_list(None))

    async def reopen(self, instants: Iterable[datetime]) -> None:
        """Forget what is kept of the hours of these instants; do this before events change."""
        writes = [
            rollup_queries.reopen(hour)
            for hour in sorted(set(map(rollup_queries.start_of, instants)))
        ]
        await self._try_for(0, lambda: self._hours.bulk_write(writes, ordered=False))

    async def inserted(self, received_at: datetime, took_s: float) -> None:
        """Reopen the hour of events whose insert took so long that it may have been counted."""
        if took_s > MARGIN.total_seconds() / 2:
            await self.reopen([received_at])

    async def advance(self) -> int:
        """Count what can be kept and is not yet; return how many hours were extended."""
        horizon = (await self._mongo.now() - MARGIN).replace(second=0, microsecond=0)
        extended = 0
        at_once = AT_ONCE
        since = await self._whole_since()
        if self._kept_for is not None:
            # One more is left, which somebody may have begun to read when it was trusted still.
            untrusted = {"_id": {"$lt": since - rollup_queries.HOUR}}
            await self._try_for(0, lambda: self._hours.delete_many(untrusted))
        at = await self._first_received(since)
        while at is not None and at < horizon:
            begin = rollup_queries.start_of(at)
            batch = [begin + number * rollup_queries.HOUR for number in range(at_once)]
            try:
                extended += await self._keep([hour for hour in batch if hour < horizon], horizon)
            except StoreUnavailableError as error:
                if at_once > 1:
                    at_once = max(at_once // 4, 1)
                    continue
                log.warning("hour_not_counted", hour=begin.isoformat(), cause=str(error))
            at = await self._first_received(begin + at_once * rollup_queries.HOUR)
        return extended

    async def _keep_advancing(self) -> None:
        while True:
            try:
                await self.advance()
            except StoreUnavailableError as error:
                log.warning("counting_delayed", cause=str(error))
            except Exception:
                # A defect in counting ahead must be seen, and only makes counts slower.
                log.exception("counting_crashed")
            await asyncio.sleep(random.uniform(0.75, 1.25) * INTERVAL_S)  # noqa: S311 - replicas apart

    def advancing(self) -> AbstractAsyncContextManager[None]:
        """Advance about every `INTERVAL_S` inside the block."""
        return beside(self._keep_advancing())

    async def _first_received(self, at: datetime) -> datetime | None:
        """Return when the first event was received that was received at `at` or later."""
        found = await self._try_for(
            0,
            lambda: self._events.find_one(
                {"received_at": {"$gte": at}},
                {"received_at": 1, "_id": 0},
                sort=[("received_at", 1), ("_id", 1)],
            ),
        )
        return None if found is None else found["received_at"]

    async def _keep(self, batch: list[datetime], horizon: datetime) -> int:
        """Extend the counts of these hours as far as `horizon`; return how many were."""
        whole = {hour: min(hour + rollup_queries.HOUR, horizon) for hour in batch}
        known = await self._try_for(
            0,
            lambda: self._hours.find(
                {"_id": {"$gte": batch[0], "$lte": batch[-1]}}, {"until": 1}
            ).to_list(None),
        )
        until = {hour: hour for hour in batch} | {each["_id"]: each["until"] for each in known}
        wanted = [
            hour
            for hour in batch
            if until[hour] < whole[hour]
            and hour not in self._too_many_pairs
            and not await self._has_live((until[hour], whole[hour]))
        ]
        taken = await self._take(wanted) if wanted else {}
        # Another replica, whose horizon is later, may have extended some since they were looked at.
        taken = {hour: each for hour, each in taken.items() if each["until"] < whole[hour]}
        if not taken:
            return 0
        spans = rollup_queries.joined(
            [(taken[hour]["until"], whole[hour]) for hour in sorted(taken)]
        )
        added: dict[datetime, list[Document]] = {hour: [] for hour in taken}
        for each in await self._tally(rollup_queries.kinds(spans)):
            added[each["_id"]["hour"]].append(each)
        writes = []
        for hour, tallied in added.items():
            if any(each["_id"]["status"] in rollup_queries.LIVE for each in tallied):
                continue
            sums = rollup_queries.added(taken[hour]["counts"], tallied, rollup_queries.PAIR)
            if len(sums) > MAX_PAIRS:
                self._too_many_pairs.add(hour)
                continue
            kinds = None
            if "kinds" in taken[hour]:
                kinds = rollup_queries.added(taken[hour]["kinds"], tallied, rollup_queries.KIND)
                kinds = kinds if len(kinds) <= MAX_KINDS else None
            writes.append(
                rollup_queries.extend(hour, taken[hour]["token"], whole[hour], sums, kinds)
            )
        if not writes:
            return 0
        written = await self._try_for(0, lambda: self._hours.bulk_write(writes, ordered=False))
        return written.modified_count

    async def _has_live(self, span: Span) -> bool:
        """Tell whether counting `span` would be for nothing: as long as there is a backlog."""
        found = await self._try_for(
            0,
            lambda: self._events.find_one(
                rollup_queries.live_in(span), {"_id": 1}, hint=rollup_queries.LIVE_INDEX
            ),
        )
        return found is not None

    async def _take(self, wanted: list[datetime]) -> dict[datetime, Document]:
        """Announce that these hours are being counted; return the documents of those granted."""
        token = secrets.token_hex(8)
        hold_ms = round(HOLD.total_seconds() * 1000)
        writes = [rollup_queries.take(hour, token, hold_ms) for hour in wanted]
        await self._try_for(0, lambda: self._hours.bulk_write(writes, ordered=False))
        found = await self._try_for(
            0, lambda: self._hours.find({"_id": {"$in": wanted}, "token": token}).to_list(None)
        )
        return {each["_id"]: each for each in found}
