"""The histogram of the console: which bars, how wide in time, where on the canvas. Pure.

Bars cover the range without a gap, so an hour in which nothing arrived is seen as such, and end
where it ends: the first and the last are of the part of their bin that was counted. Instants are
UTC; lengths on the canvas are units of the SVG's view box.
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
BASE = HEIGHT - 1
MOST_BARS = 200
STACK = (Status.DELIVERED, Status.DELIVERING, Status.RECEIVED, Status.FAILED_PERMANENTLY)
"""From the base line upwards: failures on top, where a thin slice still shows."""
SLIVER = 2.0
"""Least height of a part that is not empty."""
LABELS = 6

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # MongoDB's $dateTrunc counts its bins from here
_MINUTE, _HOUR, _DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Bin:
    """The time that one bar covers, in the terms of MongoDB's `$dateTrunc`."""

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
_SPANS = ((20 * _MINUTE, 0), (2 * _HOUR, 1), (8 * _DAY, 2), (MOST_BARS * _DAY, 3))
"""Hours are the rule: finer only where there would be hardly any, coarser past eight days."""


@dataclass(frozen=True, slots=True)
class Part:
    """One outcome's share of a bar."""

    status: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its time, its counts, and where it stands."""

    start: datetime
    end: datetime
    counts: Mapping[str, int]
    total: int
    x: float
    width: float
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Label:
    """A time written below the axis: where its bar begins, in percent of the width."""

    percent: float
    at: datetime
    anchor: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything a template draws."""

    bin: Bin
    bars: Sequence[Bar]
    top: int
    labels: Sequence[Label]


def bin_for(start: datetime, end: datetime) -> Bin:
    """Return how fine the bars between two instants are: at most `MOST_BARS` and a few."""
    span = end - start
    for longest, index in _SPANS:
        if span <= longest:
            return BINS[index]
    return next((each for each in BINS[4:] if span / each.length <= MOST_BARS), BINS[-1])


def floor(instant: datetime, bin_: Bin) -> datetime:
    """Return the start of the bin that holds `instant`."""
    return instant - (instant - _EPOCH) % bin_.length


def chart(
    counted: Mapping[datetime, Mapping[str, int]], start: datetime, end: datetime, bin_: Bin
) -> Chart:
    """Lay out the bars from `start` (inclusive) to `end` (exclusive).

    `counted` has the counts by status of each bin that is not empty, by the bin's start.
    """
    first = floor(start, bin_)
    number = max(-((first - end) // bin_.length), 1)
    bins = [first + place * bin_.length for place in range(number)]
    totals = [sum(counted.get(each, {}).values()) for each in bins]
    top = max(totals, default=0)
    step = WIDTH / number
    gap = min(step * 0.2, 4.0)
    bars = [
        Bar(
            max(each, start),
            min(each + bin_.length, end),
            counted.get(each, {}),
            total,
            round(place * step + gap / 2, 2),
            round(step - gap, 2),
            _parts(counted.get(each, {}), top),
        )
        for place, (each, total) in enumerate(zip(bins, totals, strict=True))
    ]
    return Chart(bin_, bars, top, _labels([bar.start for bar in bars]))


def _parts(counts: Mapping[str, int], top: int) -> list[Part]:
    parts: list[Part] = []
    y = float(BASE)
    for status in STACK:
        count = counts.get(status, 0)
        if count:
            height = max(count / top * (BASE - 8), SLIVER)
            y -= height
            parts.append(Part(str(status), round(y, 2), round(height, 2)))
    return parts


def _labels(starts: Sequence[datetime]) -> list[Label]:
    every = max(1, -(-len(starts) // LABELS))
    return [
        Label(
            round(place / len(starts) * 100, 2), starts[place], "start" if place == 0 else "middle"
        )
        # One that begins past this would not end inside.
        for place in range(0, max(1, len(starts) - every // 2), every)
    ]
