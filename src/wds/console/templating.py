"""How the console writes what it shows: its templates, their filters, its static files.

Every value is escaped by the templates; nothing here or in them is ever marked as safe.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib import resources
from typing import TYPE_CHECKING

import aiohttp_jinja2
from jinja2 import PackageLoader, StrictUndefined

from wds import __version__
from wds.console.event_query import stamp
from wds.console.json_view import visible
from wds.domain.deliveries import Status
from wds.encoding import instant_text

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
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_KIB = 1024
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_JUST_NOW_S = 1.0


def label(status: str) -> str:
    """Return what a status is called on a page."""
    return LABELS[Status(status)]


def when(at: datetime) -> str:
    """Write an instant for people: UTC, to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def seconds(length_s: float) -> str:
    """Write a length of time with its largest unit or two."""
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
    """Write how long ago `at` was."""
    passed = (now - at).total_seconds()
    return "just now" if passed < _JUST_NOW_S else f"{seconds(passed)} ago"


def ahead(at: datetime, now: datetime) -> str:
    """Write in how long `at` will be; what should have been is due."""
    left = (at - now).total_seconds()
    return "due now" if left < _JUST_NOW_S else f"in {seconds(left)}"


def after(at: datetime, start: datetime) -> str:
    """Write how long after `start` something happened; nothing for `start` itself."""
    passed = (at - start).total_seconds()
    if passed == 0:
        return ""
    return f"+{passed:.2f} s" if 0 <= passed < _MINUTE else f"+{seconds(max(passed, 0))}"


def milliseconds(length_ms: int) -> str:
    """Write the length of a request."""
    return f"{length_ms} ms" if length_ms < 1000 else f"{length_ms / 1000:.1f} s"  # noqa: PLR2004


def count(number: int) -> str:
    """Write a number with its thousands apart."""
    return f"{number:,}"


def share(part: int, whole: int) -> str:
    """Write a part of a whole in percent; what is there is never written as nothing."""
    if not part:
        return "none"
    percent = part / whole * 100
    return f"{percent:.1f} %" if percent >= 0.1 else "< 0.1 %"  # noqa: PLR2004


def size(number: int) -> str:
    """Write a number of bytes."""
    if number < _KIB:
        return f"{number} bytes"
    if number < _KIB * _KIB:
        return f"{number / _KIB:.1f} KiB"
    return f"{number / _KIB / _KIB:.1f} MiB"


def sentence(text: str) -> str:
    """Write a message of the API as a sentence."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def axis(at: datetime, bin_: Bin) -> str:
    """Write the start of a bar below the axis."""
    if bin_.unit == "day":
        return at.strftime("%d %b %Y" if bin_.size > 1 else "%d %b")
    return at.strftime("%d %b %H:%M")


def bar_title(bar: Bar) -> str:
    """Say in words what a bar shows."""
    counts = ", ".join(
        f"{count(bar.counts[status])} {label(status).lower()}"
        for status in Status
        if bar.counts.get(status)
    )
    start, end = (stamp(each).replace("T", " ") for each in (bar.start, bar.end))
    return f"{start} to {end}: {counts}"


class Assets:
    """The static files, read once; each address carries a digest, so it can be kept for good."""

    def __init__(self) -> None:
        """Read them."""
        folder = resources.files(__package__) / "static"
        self._files = {
            each.name: (each.read_bytes(), _TYPES[each.name.rpartition(".")[2]])
            for each in folder.iterdir()
        }

    def get(self, name: str) -> tuple[bytes, str] | None:
        """Return the bytes and the content type of a file, or None."""
        return self._files.get(name)

    def address(self, name: str) -> str:
        """Return where a file is served."""
        digest = hashlib.sha256(self._files[name][0]).hexdigest()[:12]
        return f"/console/static/{name}?v={digest}"


def set_up(app: web.Application, assets: Assets, *, has_login: bool) -> None:
    """Give `app` its templates: everything escaped, a name that is missing an error."""
    environment = aiohttp_jinja2.setup(
        app,
        loader=PackageLoader("wds.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        default_helpers=False,
        filters=_FILTERS,
    )
    environment.globals.update(
        static=assets.address, version=__version__, has_login=has_login, section=""
    )


_FILTERS: dict[str, Callable[..., str]] = {
    "label": label,
    "when": when,
    "iso": instant_text,
    "seconds": seconds,
    "ago": ago,
    "ahead": ahead,
    "after": after,
    "milliseconds": milliseconds,
    "count": count,
    "share": share,
    "bytes": size,
    "sentence": sentence,
    "axis": axis,
    "bar_title": bar_title,
    "visible": visible,
}
