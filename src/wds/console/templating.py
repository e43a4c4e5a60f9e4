"""The console's templates, their filters, and the static files.

The templates escape every value; nothing here or in them is marked as safe.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib import resources
from typing import TYPE_CHECKING

import aiohttp_jinja2
from jinja2 import PackageLoader, StrictUndefined

from wds import __version__
from wds.console.event_query import datetime_local
from wds.console.json_view import escape_invisible
from wds.console.paths import HOME
from wds.domain.deliveries import Status
from wds.encoding import instant_text
from wds.web import swagger

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from wds.console.histogram import Bar, Bin

LABELS = {
    Status.RECEIVED: "Received",
    Status.DELIVERING: "Delivering",
    Status.DELIVERED: "Delivered",
    Status.FAILED_PERMANENTLY: "Failed",
}
_CONTENT_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_KIB = 1024
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_JUST_NOW_S = 1.0


# -- filters ---------------------------------------------------------------------------------


def status_label(status: str) -> str:
    """Return the name of a status for people."""
    return LABELS[Status(status)]


def utc_time(at: datetime) -> str:
    """Format an instant for people: UTC, to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def duration(length_s: float) -> str:
    """Format seconds as one or two of the largest units."""
    if length_s < _MINUTE:
        return f"{length_s:.0f} s"
    if length_s < _HOUR:
        return f"{length_s // _MINUTE:.0f} min"
    if length_s < _DAY:
        hours, rest = divmod(length_s, _HOUR)
        return f"{hours:.0f} h {rest // _MINUTE:.0f} min"
    days, rest = divmod(length_s, _DAY)
    return f"{days:.0f} d {rest // _HOUR:.0f} h"


def ago(at: datetime, now: datetime) -> str:
    """Format the time since a past instant."""
    passed_s = (now - at).total_seconds()
    return "just now" if passed_s < _JUST_NOW_S else f"{duration(passed_s)} ago"


def due_in(at: datetime, now: datetime) -> str:
    """Format the time until a future instant; a past one is "due now"."""
    left_s = (at - now).total_seconds()
    return "due now" if left_s < _JUST_NOW_S else f"in {duration(left_s)}"


def offset_from(at: datetime, start: datetime) -> str:
    """Format the time from `start` to `at`; empty for `start` itself."""
    passed_s = (at - start).total_seconds()
    if passed_s == 0:
        return ""
    return f"+{passed_s:.2f} s" if 0 <= passed_s < _MINUTE else f"+{duration(max(passed_s, 0))}"


def milliseconds(length_ms: int) -> str:
    """Format how long a request took."""
    return f"{length_ms} ms" if length_ms < 1000 else f"{length_ms / 1000:.1f} s"  # noqa: PLR2004


def number(value: int) -> str:
    """Format a whole number with thousands separators."""
    return f"{value:,}"


def percentage(part: int, whole: int) -> str:
    """Format `part` as a percentage of `whole`; only 0 is "none"."""
    if not part:
        return "none"
    percent = part / whole * 100
    return f"{percent:.1f} %" if percent >= 0.1 else "< 0.1 %"  # noqa: PLR2004


def byte_size(size: int) -> str:
    """Format a number of bytes."""
    if size < _KIB:
        return f"{size} bytes"
    if size < _KIB * _KIB:
        return f"{size / _KIB:.1f} KiB"
    return f"{size / _KIB / _KIB:.1f} MiB"


def sentence(text: str) -> str:
    """Return an error message as a sentence: with a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def axis_label(at: datetime, bin_: Bin) -> str:
    """Format the start of a bar for the time axis."""
    if bin_.unit == "day":
        return at.strftime("%d %b %Y" if bin_.size > 1 else "%d %b")
    return at.strftime("%d %b %H:%M")


def bar_title(bar: Bar) -> str:
    """Describe a bar: its time and its counts."""
    counts = ", ".join(
        f"{number(bar.counts[status])} {status_label(status).lower()}"
        for status in Status
        if bar.counts.get(status)
    )
    start, end = (datetime_local(each).replace("T", " ") for each in (bar.start, bar.end))
    return f"{start} to {end}: {counts}"


FILTERS: dict[str, Callable[..., str]] = {
    "status_label": status_label,
    "utc_time": utc_time,
    "instant_text": instant_text,
    "duration": duration,
    "ago": ago,
    "due_in": due_in,
    "offset_from": offset_from,
    "milliseconds": milliseconds,
    "number": number,
    "percentage": percentage,
    "byte_size": byte_size,
    "sentence": sentence,
    "axis_label": axis_label,
    "bar_title": bar_title,
    "escape_invisible": escape_invisible,
}


# -- templates and static files --------------------------------------------------------------


class StaticFiles:
    """The static files, in memory. A file's URL contains a digest, so it can be cached for ever."""

    def __init__(self) -> None:
        """Read the files."""
        folder = resources.files(__package__) / "static"
        self._files = {
            each.name: (each.read_bytes(), _CONTENT_TYPES[each.name.rpartition(".")[2]])
            for each in (*folder.iterdir(), swagger.ICON)
        }

    def get(self, name: str) -> tuple[bytes, str] | None:
        """Return a file's bytes and content type, or None if there is no such file."""
        return self._files.get(name)

    def url(self, name: str) -> str:
        """Return a file's URL."""
        digest = hashlib.sha256(self._files[name][0]).hexdigest()[:12]
        return f"{HOME}/static/{name}?v={digest}"


def set_up(app: web.Application, files: StaticFiles, *, has_login: bool) -> None:
    """Add the templates to `app`. They escape every value, and fail on an undefined name."""
    environment = aiohttp_jinja2.setup(
        app,
        loader=PackageLoader("wds.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        default_helpers=False,
        filters=FILTERS,
    )
    environment.globals.update(
        static=files.url, version=__version__, has_login=has_login, section=""
    )
