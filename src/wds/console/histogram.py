"""The console's histogram: which bars, how much time each covers, and where they are drawn. Pure.

The bars cover the range without a gap, so that an hour in which nothing arrived can be seen. They
end where the range ends: the first and the last bar may cover only part of their bin. Instants are
UTC. Positions and lengths are in units of the SVG's view box, `WIDTH` by `HEIGHT`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from wds.domain.deliveries import Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WIDTH = 1000
HEIGHT = 160
BASELINE = HEIGHT - 1
MAX_BARS = 200
STACK_ORDER = (
    Status.DELIVERED,
    Status.DELIVERING,
    Status.RECEIVED,
    Status.FAILED_PERMANENTLY,
)
"""From the baseline upwards. Failures are on top, where even a thin segment can be seen."""
MIN_SEGMENT_HEIGHT = 2.0
"""Height of a segment whose count is small but not 0."""
LABELS = 6
"""About how many labels the time axis has."""

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # where MongoDB's $dateTrunc starts counting bins
_MINUTE, _HOUR, _DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Bin:
    """The time that one bar covers, as `unit` and `binSize` of MongoDB's `$dateTrunc`."""

    unit: str
    size: int
    length: timedelta
    name: str


BINS = (
    Bin("minute", 1, _MINUTE, "minute"),
    Bin("minute", 5, 5 * _MINUTE, "5 minutes"),
    Bin("hour", 1, _HOUR, "hour"),
    Bin("day", 1, _DAY, "day"),
    Bin("day", 7, 7 * _DAY, "7 days"),
    Bin("day", 28, 28 * _DAY, "28 days"),
    Bin("day", 364, 364 * _DAY, "52 weeks"),
)
_MAX_SPANS = ((20 * _MINUTE, 0), (2 * _HOUR, 1), (8 * _DAY, 2), (MAX_BARS * _DAY, 3))
"""Longest range for each of the first bins, by index: hours for most ranges, finer bins where
hours would be too few bars, coarser ones past eight days."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of a bar that stands for one status."""

    status: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: what time it covers, its counts by status, and where it is drawn."""

    start: datetime
    end: datetime
    counts: Mapping[str, int]
    total: int
    x: float
    width: float
    segments: Sequence[Segment]


@dataclass(frozen=True, slots=True)
class Label:
    """A label of the time axis, where a bar begins; `percent` of the width."""

    percent: float
    at: datetime
    anchor: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """The histogram as the template draws it; `max_total` is the count of the highest bar."""

    bin: Bin
    bars: Sequence[Bar]
    max_total: int
    labels: Sequence[Label]


def choose_bin(start: datetime, end: datetime) -> Bin:
    """Return the finest suitable bin for a range: about `MAX_BARS` bars or fewer."""
    span = end - start
    for max_span, index in _MAX_SPANS:
        if span <= max_span:
            return BINS[index]
    return next((each for each in BINS[4:] if span / each.length <= MAX_BARS), BINS[-1])


def bin_start(instant: datetime, bin_: Bin) -> datetime:
    """Return the start of the bin that contains `instant`."""
    return instant - (instant - _EPOCH) % bin_.length


def layout(
    counts: Mapping[datetime, Mapping[str, int]], start: datetime, end: datetime, bin_: Bin
) -> Histogram:
    """Lay out the bars from `start` (inclusive) to `end` (exclusive).

    `counts` has, by the start of each bin that is not empty, the number of events by status.
    """
    first = bin_start(start, bin_)
    number = max(-((first - end) // bin_.length), 1)
    bins = [first + index * bin_.length for index in range(number)]
    totals = [sum(counts.get(each, {}).values()) for each in bins]
    max_total = max(totals, default=0)
    step = WIDTH / number
    gap = min(step * 0.2, 4.0)
    bars = [
        Bar(
            max(each, start),
            min(each + bin_.length, end),
            counts.get(each, {}),
            total,
            round(index * step + gap / 2, 2),
            round(step - gap, 2),
            _segments(counts.get(each, {}), max_total),
        )
        for index, (each, total) in enumerate(zip(bins, totals, strict=True))
    ]
    return Histogram(bin_, bars, max_total, _labels([bar.start for bar in bars]))


def _segments(counts: Mapping[str, int], max_total: int) -> list[Segment]:
    segments: list[Segment] = []
    y = float(BASELINE)
    for status in STACK_ORDER:
        count = counts.get(status, 0)
        if count:
            height = max(count / max_total * (BASELINE - 8), MIN_SEGMENT_HEIGHT)
            y -= height
            segments.append(Segment(str(status), round(y, 2), round(height, 2)))
    return segments


def _labels(starts: Sequence[datetime]) -> list[Label]:
    every = max(1, -(-len(starts) // LABELS))
    return [
        Label(
            round(index / len(starts) * 100, 2), starts[index], "start" if index == 0 else "middle"
        )
        # A label that begins later than this would not fit.
        for index in range(0, max(1, len(starts) - every // 2), every)
    ]
