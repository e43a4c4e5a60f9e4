"""The counts above a list of events: totals by status and the histogram.

Counts come from the rollups and the covering index. Viewers of the same filter and range share
them. Counts that take too long are left out, so a page costs the same however many events there
are.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from wds.console import event_query, histogram
from wds.console.cache import SingleFlightCache
from wds.domain.deliveries import Status
from wds.domain.errors import StoreUnavailableError
from wds.storage import event_queries
from wds.storage.rollup_queries import HOUR

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wds.console.event_query import EventQuery
    from wds.storage.event_reader import EventReader
    from wds.storage.rollups import Rollups

Span = tuple[datetime, datetime]
"""Start (inclusive) and end (exclusive)."""
BinCounts = list[tuple[datetime, str, int]]
"""Start of a bin, status, number of events; the same pair may occur more than once."""

_FIRST_BIN = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_BIN = datetime(9000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of the events that match a query.

    Attributes:
        totals: by status, including statuses that the query leaves out.
        total: of the statuses that the query filters by.
        histogram: of the events in `total`.
    """

    totals: Mapping[Status, int]
    total: int
    histogram: histogram.Histogram


class EventCounts:
    """Counts events for the pages of one process."""

    def __init__(self, reader: EventReader, rollups: Rollups) -> None:
        """Count by what `rollups` keeps where possible, else by `reader`."""
        self._reader = reader
        self._rollups = rollups
        self._cache: SingleFlightCache[tuple[Span, BinCounts] | None] = SingleFlightCache()

    async def count(self, query: EventQuery, now: datetime) -> Counts | None:
        """Count the events that match `query` by bin and status; None if it takes too long.

        The query's statuses are ignored, so that the totals show what other statuses would give.
        """
        span = await self._span(query, now)
        bin_ = histogram.choose_bin(*span)
        event_filter = query.event_filter(now).replace(status=())
        match = event_queries.match(event_filter)

        async def count() -> tuple[Span, BinCounts] | None:
            unit, size = bin_.unit, bin_.size
            try:
                if bin_.length >= HOUR and event_filter.counted_by_rollups:
                    return span, await self._rollups.status_counts(match, unit, size)
                return span, await self._reader.status_counts(match, unit, size)
            except StoreUnavailableError:
                return None  # cached too, so that it is not retried sooner than a slow success

        names = {*event_query.FILTERS, "range"} - {"status"}
        filter_key = tuple(sorted(pair for pair in query.pairs if pair[0] in names))
        counted = await self._cache.get((filter_key, bin_), count)
        if counted is None:
            return None
        # Draw the range that was counted; it may be a little older than this page.
        counted_span, rows = counted
        totals = dict.fromkeys(Status, 0)
        bins: dict[datetime, dict[str, int]] = {}
        for start, status, number in rows:
            totals[Status(status)] += number
            if not query.statuses or status in query.statuses:
                by_status = bins.setdefault(histogram.bin_start(start, bin_), {})
                by_status[status] = by_status.get(status, 0) + number
        total = sum(sum(each.values()) for each in bins.values())
        return Counts(totals, total, histogram.layout(bins, *counted_span, bin_))

    async def _span(self, query: EventQuery, now: datetime) -> Span:
        """Return the range of the histogram; an unbounded one starts at the oldest event."""
        start, end = query.bounds(now)
        end = _clamp(end or now + timedelta(milliseconds=1))
        if start is None:
            start = await self._reader.oldest() or end - timedelta(hours=1)
        return min(_clamp(start), end), end


def _clamp(instant: datetime) -> datetime:
    """Keep a histogram's ends so far from the ends of `datetime` that its bins fit as well."""
    return min(max(instant, _FIRST_BIN), _LAST_BIN)
