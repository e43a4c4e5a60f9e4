"""What the address bar of the console says: filters, range, order, place. Pure.

A view is the whole of a query string, so it can be shared. Names and meanings are those of the
search API, and beside them `range`, a length of time that ends now, and `before`, a cursor read
backwards. Without a range it is the last day, or all time where an id or a key is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from wds.api import event_schemas
from wds.domain.deliveries import Status
from wds.domain.errors import Refusal
from wds.domain.event_filter import FILTERS as EVENT_FILTERS, NEWEST_FIRST
from wds.encoding import instant_text
from wds.web import schemas

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from wds.domain.event_filter import EventFilter, Position

PATH = "/console"
RANGES = {
    "1h": ("1 hour", timedelta(hours=1)),
    "24h": ("24 hours", timedelta(hours=24)),
    "7d": ("7 days", timedelta(days=7)),
    "30d": ("30 days", timedelta(days=30)),
    "all": ("All time", None),
}
"""Name in the address -> what it is called, and how long it is."""
DEFAULT_RANGE = "24h"
PAGE_SIZES = (25, 50, 100, 200)
DEFAULT_LIMIT = 50
SORTS = {
    "-received_at": "Newest first",
    "received_at": "Oldest first",
    "-attempt_count": "Most attempts first",
    "attempt_count": "Fewest attempts first",
}

SEVERAL = tuple(spec.wire_name for spec in EVENT_FILTERS if spec.many)
ONE = tuple(spec.wire_name for spec in EVENT_FILTERS if not spec.many)
FILTERS = (*SEVERAL, *ONE)
PLACES = ("cursor", "before")
KNOWN = (*FILTERS, "range", "sort", "limit", *PLACES)
_INTEGERS = {"last_status_code", "min_attempts", "limit"}
_MOST_DIGITS = 9

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class View:
    """One view as asked for.

    Attributes:
        pairs: the query string, without empty values.
        problems: what is wrong, by name; then nothing can be found.
        loaded: the request as `SearchRequestSchema` read it; empty if there are problems.
        range: the name of the range, or "custom" where an instant is given.
    """

    pairs: Pairs
    problems: Mapping[str, Sequence[str]]
    loaded: Mapping[str, Any]
    range: str

    @property
    def backwards(self) -> bool:
        """Tell whether the page before a place is wanted."""
        return bool(self.all("before"))

    @property
    def first(self) -> bool:
        """Tell whether this is the first page."""
        return not any(self.all(name) for name in PLACES)

    @property
    def sort(self) -> str:
        """Return the order's name."""
        return str(self.loaded.get("sort", NEWEST_FIRST))

    @property
    def reading(self) -> tuple[str, Position | None]:
        """Return in which order to read, and from where."""
        place = self.loaded.get("cursor")
        order = flipped(self.sort) if self.backwards else self.sort
        return order, None if place is None else place[1]

    @property
    def statuses(self) -> tuple[str, ...]:
        """Return the statuses that are asked for; none means all."""
        return tuple(self.all("status"))

    def all(self, name: str) -> list[str]:
        """Return the values of a parameter."""
        return [value for key, value in self.pairs if key == name]

    def one(self, name: str) -> str:
        """Return the first value of a parameter, or ""."""
        return next(iter(self.all(name)), "")

    def bounds(self, now: datetime) -> tuple[datetime | None, datetime | None]:
        """Return from when (inclusive) to when (exclusive); None is without end."""
        length = RANGES[self.range][1] if self.range in RANGES else None
        if length is not None:
            return now - length, None
        return self.loaded.get("from_"), self.loaded.get("to")

    def event_filter(self, now: datetime) -> EventFilter:
        """Return the filter, with the instants of the range."""
        start, end = self.bounds(now)
        return event_schemas.filter_of(self.loaded).replace(from_=start, to=end)

    def body(self, now: datetime) -> dict[str, Any]:
        """Return the filters as the JSON that the API takes, with the instants filled in."""
        body = _body(self.pairs, FILTERS)
        start, end = self.bounds(now)
        for name, instant in (("from", start), ("to", end)):
            if instant is not None:
                body[name] = instant_text(instant)
        return body

    # -- links: the same view but for something ------------------------------------------------

    @property
    def here(self) -> str:
        """Return the address of this very view."""
        return _address(PATH, self.pairs)

    def link(self, path: str = PATH, **changes: str | Iterable[str] | None) -> str:
        """Return the address of this view with parameters replaced; None leaves one out.

        `from` is spelled `from_`. The place is left out unless it is what changes.
        """
        return self.replaced({name.rstrip("_"): value for name, value in changes.items()}, path)

    def replaced(self, new: Mapping[str, str | Iterable[str] | None], path: str = PATH) -> str:
        """Do what `link` does, with the names as they are."""
        kept = [(k, v) for k, v in self.pairs if k not in new and k not in PLACES]
        for name, value in new.items():
            values = [] if value is None else [value] if isinstance(value, str) else value
            kept += [(name, each) for each in values]
        return _address(path, kept)

    def without(self, name: str, value: str) -> str:
        """Return the address of this view with one value of a parameter removed."""
        return self.replaced({name: [each for each in self.all(name) if each != value]})

    def toggled(self, status: str) -> str:
        """Return the address of this view with one status asked for, or no longer."""
        on = self.statuses
        return self.link(status=[s for s in Status if (s in on) != (s == status)])

    def narrowed(self, start: datetime, end: datetime) -> str:
        """Return the address of this view between two instants."""
        return self.link(range=None, from_=stamp(start), to=stamp(end))

    def ranged(self, name: str) -> str:
        """Return the address of this view over a named range."""
        return self.link(range=name, from_=None, to=None)

    def chips(self) -> list[tuple[str, str, str]]:
        """Return the filters in force: name, value, and the address without it."""
        return [(k, v, self.without(k, v)) for k, v in self.pairs if k in FILTERS]


def read(query: Iterable[tuple[str, str]]) -> View:
    """Read a query string. Whatever is wrong is in the view's `problems`; nothing is raised."""
    pairs = tuple((name, value.strip()) for name, value in query if value.strip())
    problems: dict[str, list[str]] = {
        name: ["There is no such filter."] for name, _ in pairs if name not in KNOWN
    }
    given = {name for name, _ in pairs}
    for name in (*ONE, "range", "sort", "limit", *PLACES):
        if sum(each == name for each, _ in pairs) > 1:
            problems[name] = ["Must be given once."]
    if given >= set(PLACES):
        problems["before"] = ["Cannot be combined with cursor."]
    if "range" in given and given & {"from", "to"}:
        problems["range"] = ["Cannot be combined with from and to."]
    body = _body(pairs, (*FILTERS, "sort", "limit", *PLACES))
    body = {("cursor" if name in PLACES else name): value for name, value in body.items()}
    loaded: dict[str, Any] = {}
    try:
        loaded = schemas.load(_SCHEMA, body)
    except Refusal as refusal:
        for detail in refusal.details:
            name = detail.field.split(".")[0]
            place = "before" if name == "cursor" and "before" in given else name
            problems.setdefault(place, []).append(detail.message)
    named = next((value for name, value in pairs if name == "range"), None)
    if named is not None and named not in RANGES:
        problems["range"] = [f"Must be one of: {', '.join(RANGES)}."]
    return View(pairs, problems, {} if problems else loaded, _range(named, given))


_SCHEMA = event_schemas.SearchRequestSchema()


def _range(named: str | None, given: set[str]) -> str:
    if named is not None:
        return named
    if given & {"from", "to"}:
        return "custom"
    return "all" if given & {"id_prefix", "idempotency_key"} else DEFAULT_RANGE


def _body(pairs: Pairs, names: Sequence[str]) -> dict[str, Any]:
    """Return a request as the API takes it; text that is no number stays, to be refused there."""
    body: dict[str, Any] = {}
    for name, value in pairs:
        if name not in names:
            continue
        read_: Any = value
        if name in _INTEGERS and value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS:
            read_ = int(value)
        if name in SEVERAL:
            body.setdefault(name, []).append(read_)
        else:
            body[name] = read_
    return body


def _address(path: str, pairs: Sequence[tuple[str, str]]) -> str:
    return f"{path}?{urlencode(pairs)}" if pairs else path


def flipped(sort: str) -> str:
    """Return the opposite order."""
    return sort[1:] if sort.startswith("-") else f"-{sort}"


def stamp(instant: datetime) -> str:
    """Write an instant as a form's field takes it: UTC, no offset, nothing that is zero."""
    text = instant.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
    return text.removesuffix(".000").removesuffix(":00")
