"""The histogram: its bars cover the range, have a suitable width in time, and fit the canvas."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from wds.console import histogram

NOW = datetime(2026, 3, 5, 14, 23, 7, 250_000, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.mark.parametrize(
    ("span", "unit", "size"),
    [
        (timedelta(minutes=5), "minute", 1),
        (HOUR, "minute", 5),
        (3 * HOUR, "hour", 1),
        (DAY, "hour", 1),
        (7 * DAY, "hour", 1),
        (30 * DAY, "day", 1),
        (3 * 365 * DAY, "day", 7),
        (10 * 365 * DAY, "day", 28),
        (2000 * 365 * DAY, "day", 364),
    ],
)
def test_choose_bin_gives_hours_but_for_very_short_and_long_ranges(span, unit, size):
    bin_ = histogram.choose_bin(NOW - span, NOW)
    assert (bin_.unit, bin_.size) == (unit, size)


@pytest.mark.parametrize(
    "span", [timedelta(0), timedelta(minutes=1), HOUR, DAY, 8 * DAY, 400 * DAY]
)
def test_layout_covers_exactly_the_range_without_a_gap(span):
    start = NOW - span
    bin_ = histogram.choose_bin(start, NOW)
    bars = histogram.layout({}, start, NOW, bin_).bars
    assert (bars[0].start, bars[-1].end) == (start, NOW)
    assert all(one.end == following.start for one, following in pairwise(bars))
    assert len(bars) <= histogram.MAX_BARS + 2


def test_layout_draws_every_status_inside_the_canvas_and_fills_it():
    first = histogram.bin_start(NOW - DAY, histogram.choose_bin(NOW - DAY, NOW))
    counted = {
        first: {"DELIVERED": 900, "FAILED_PERMANENTLY": 100},
        first + HOUR: {
            "DELIVERED": 100_000,
            "RECEIVED": 1,
            "DELIVERING": 1,
            "FAILED_PERMANENTLY": 1,
        },
    }
    drawn = histogram.layout(counted, NOW - DAY, NOW, histogram.choose_bin(NOW - DAY, NOW))
    assert (drawn.bars[0].start, drawn.bars[0].total) == (NOW - DAY, 1000)
    full = drawn.bars[1]
    assert drawn.max_total == full.total == 100_003
    assert len(full.segments) == 4
    assert all(
        segment.height >= histogram.MIN_SEGMENT_HEIGHT
        for bar in drawn.bars
        for segment in bar.segments
    )
    assert all(segment.y >= 0 for bar in drawn.bars for segment in bar.segments)
    assert full.segments[-1].status == "FAILED_PERMANENTLY"
    assert full.segments[-1].y < histogram.HEIGHT / 10
    assert all(bar.x >= 0 and bar.x + bar.width <= histogram.WIDTH for bar in drawn.bars)


def test_layout_stacks_segments_without_a_gap():
    counted = {
        histogram.bin_start(NOW, histogram.choose_bin(NOW - DAY, NOW)): {
            "DELIVERED": 5,
            "RECEIVED": 5,
        }
    }
    bars = histogram.layout(counted, NOW - DAY, NOW, histogram.choose_bin(NOW - DAY, NOW)).bars
    low, high = bars[-1].segments
    assert low.y + low.height == histogram.BASELINE
    assert high.y + high.height == pytest.approx(low.y, abs=0.02)


@pytest.mark.parametrize("span", [timedelta(minutes=1), HOUR, DAY, 8 * DAY, 400 * DAY])
def test_layout_puts_each_label_where_its_bar_begins(span):
    drawn = histogram.layout({}, NOW - span, NOW, histogram.choose_bin(NOW - span, NOW))
    starts = [bar.start for bar in drawn.bars]
    assert 1 <= len(drawn.labels) <= histogram.LABELS + 1
    for label in drawn.labels:
        assert label.percent == pytest.approx(starts.index(label.at) / len(starts) * 100, abs=0.01)
