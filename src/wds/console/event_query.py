"""The query string of the events page: filters, time range, order and position. Pure.

The query string alone determines a list of events, so a list can be bookmarked and shared. Names
and meanings are those of the search API, and two more: `range`, a length of time that ends now, and
`before`, a cursor that is read backwards. Without a range the query covers the last day, or all
time where it names an event by id prefix or idempotency key.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from wds.api import event_schemas
from wds.console.paths import HOME
from wds.domain.deliveries import Status
from wds.domain.errors import Refusal
from wds.domain.event_filter import FILTERS as EVENT_FILTERS, NEWEST_FIRST
from wds.encoding import instant_text
from wds.web import schemas

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from wds.domain.event_filter import EventFilter, Position

RANGES = {
    "1h": ("1 hour", timedelta(hours=1)),
    "24h": ("24 hours", timedelta(hours=24)),
    "7d": ("7 days", timedelta(days=7)),
    "30d": ("30 days", timedelta(days=30)),
    "all": ("All time", None),
}
"""Name in the query string -> title and length."""
DEFAULT_RANGE = "24h"
PAGE_SIZES = (25, 50, 100, 200)
DEFAULT_LIMIT = 50
SORTS = {
    "-received_at": "Newest first",
    "received_at": "Oldest first",
    "-attempt_count": "Most attempts first",
    "attempt_count": "Fewest attempts first",
}
"""Name in the query string -> title."""

LIST_FILTERS = tuple(spec.wire_name for spec in EVENT_FILTERS if spec.many)
SINGLE_FILTERS = tuple(spec.wire_name for spec in EVENT_FILTERS if not spec.many)
FILTERS = (*LIST_FILTERS, *SINGLE_FILTERS)
CURSORS = ("cursor", "before")
PARAMETERS = (*FILTERS, "range", "sort", "limit", *CURSORS)
_INTEGERS = {"last_status_code", "min_attempts", "limit"}
_MAX_DIGITS = 9

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class EventQuery:
    """A parsed query string.

    Attributes:
        pairs: its parameters, without empty values.
        problems: error messages by parameter; if there are any, the query cannot be run.
        loaded: the search request it stands for, as `SearchRequestSchema` loaded it; empty if
            there are problems.
        range: the name of the range, or "custom" where the query has `from` or `to`.
    """

    pairs: Pairs
    problems: Mapping[str, Sequence[str]]
    loaded: Mapping[str, Any]
    range: str

    @property
    def is_backwards(self) -> bool:
        """Tell whether the query asks for the page that ends before a position."""
        return bool(self.values("before"))

    @property
    def is_first_page(self) -> bool:
        """Tell whether the page starts at the beginning of the list."""
        return not any(self.values(name) for name in CURSORS)

    @property
    def sort(self) -> str:
        """Return the name of the page's order."""
        return str(self.loaded.get("sort", NEWEST_FIRST))

    @property
    def read_order(self) -> tuple[str, Position | None]:
        """Return in which order to read the events, and after which position.

        That order is the reverse of the page's for a page that is read backwards.
        """
        cursor = self.loaded.get("cursor")
        sort = reverse_sort(self.sort) if self.is_backwards else self.sort
        return sort, None if cursor is None else cursor[1]

    @property
    def statuses(self) -> tuple[str, ...]:
        """Return the statuses to filter by; empty means all."""
        return tuple(self.values("status"))

    def values(self, name: str) -> list[str]:
        """Return all values of a parameter."""
        return [value for key, value in self.pairs if key == name]

    def value(self, name: str) -> str:
        """Return the first value of a parameter, or ""."""
        return next(iter(self.values(name)), "")

    def bounds(self, now: datetime) -> tuple[datetime | None, datetime | None]:
        """Return the range's start (inclusive) and end (exclusive); None means unbounded."""
        length = RANGES[self.range][1] if self.range in RANGES else None
        if length is not None:
            return now - length, None
        return self.loaded.get("from_"), self.loaded.get("to")

    def event_filter(self, now: datetime) -> EventFilter:
        """Return the filter, with the range as instants."""
        start, end = self.bounds(now)
        return event_schemas.filter_of(self.loaded).replace(from_=start, to=end)

    def filter_json(self, now: datetime) -> dict[str, Any]:
        """Return the filter as JSON for the API, with the range as instants."""
        body = _request_json(self.pairs, FILTERS)
        start, end = self.bounds(now)
        for name, instant in (("from", start), ("to", end)):
            if instant is not None:
                body[name] = instant_text(instant)
        return body

    # -- links to this query with something changed --------------------------------------------

    @property
    def url(self) -> str:
        """Return the URL of this query."""
        return _url(HOME, self.pairs)

    def url_with(self, path: str = HOME, **changes: str | Iterable[str] | None) -> str:
        """Return the URL of this query with parameters replaced; None removes one.

        Write `from_` for `from`. The cursor is dropped unless it is replaced.
        """
        return self._url_with({name.rstrip("_"): value for name, value in changes.items()}, path)

    def _url_with(self, changes: Mapping[str, str | Iterable[str] | None], path: str = HOME) -> str:
        pairs = [(k, v) for k, v in self.pairs if k not in changes and k not in CURSORS]
        for name, value in changes.items():
            values = [] if value is None else [value] if isinstance(value, str) else value
            pairs += [(name, each) for each in values]
        return _url(path, pairs)

    def url_without(self, name: str, value: str) -> str:
        """Return the URL of this query without one value of a parameter."""
        return self._url_with({name: [each for each in self.values(name) if each != value]})

    def url_toggling(self, status: str) -> str:
        """Return the URL of this query with one status added to the filter, or removed from it."""
        current = self.statuses
        return self.url_with(status=[s for s in Status if (s in current) != (s == status)])

    def url_between(self, start: datetime, end: datetime) -> str:
        """Return the URL of this query for the time between two instants."""
        return self.url_with(range=None, from_=datetime_local(start), to=datetime_local(end))

    def url_for_range(self, name: str) -> str:
        """Return the URL of this query for a named range."""
        return self.url_with(range=name, from_=None, to=None)

    def active_filters(self) -> list[tuple[str, str, str]]:
        """Return each filter's name and value, and the URL without it."""
        return [(k, v, self.url_without(k, v)) for k, v in self.pairs if k in FILTERS]


def parse(query: Iterable[tuple[str, str]]) -> EventQuery:
    """Parse a query string. Errors go into the query's `problems`; nothing is raised."""
    pairs = tuple((name, value.strip()) for name, value in query if value.strip())
    names = {name for name, _ in pairs}
    problems: dict[str, list[str]] = {
        name: ["There is no such filter."] for name, _ in pairs if name not in PARAMETERS
    }
    for name in (*SINGLE_FILTERS, "range", "sort", "limit", *CURSORS):
        if sum(each == name for each, _ in pairs) > 1:
            problems[name] = ["Must be given once."]
    if names >= set(CURSORS):
        problems["before"] = ["Cannot be combined with cursor."]
    if "range" in names and names & {"from", "to"}:
        problems["range"] = ["Cannot be combined with from and to."]
    body = _request_json(pairs, (*FILTERS, "sort", "limit", *CURSORS))
    body = {("cursor" if name in CURSORS else name): value for name, value in body.items()}
    loaded: dict[str, Any] = {}
    try:
        loaded = schemas.load(_SCHEMA, body)
    except Refusal as refusal:
        for detail in refusal.details:
            name = detail.field.split(".")[0]
            parameter = "before" if name == "cursor" and "before" in names else name
            problems.setdefault(parameter, []).append(detail.message)
    range_name = next((value for name, value in pairs if name == "range"), None)
    if range_name is not None and range_name not in RANGES:
        problems["range"] = [f"Must be one of: {', '.join(RANGES)}."]
    return EventQuery(
        pairs, problems, {} if problems else loaded, range_name or _default_range(names)
    )


_SCHEMA = event_schemas.SearchRequestSchema()


def _default_range(names: set[str]) -> str:
    """Return the range of a query with these parameters and no `range`."""
    if names & {"from", "to"}:
        return "custom"
    return "all" if names & {"id_prefix", "idempotency_key"} else DEFAULT_RANGE


def _request_json(pairs: Pairs, names: Sequence[str]) -> dict[str, Any]:
    """Return the parameters as JSON for the API. Text that is not a number stays text.

    The API's schema then refuses it.
    """
    body: dict[str, Any] = {}
    for name, text in pairs:
        if name not in names:
            continue
        value: Any = text
        if name in _INTEGERS and text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS:
            value = int(text)
        if name in LIST_FILTERS:
            body.setdefault(name, []).append(value)
        else:
            body[name] = value
    return body


def _url(path: str, pairs: Sequence[tuple[str, str]]) -> str:
    return f"{path}?{urlencode(pairs)}" if pairs else path


def reverse_sort(sort: str) -> str:
    """Return the name of the reverse order."""
    return sort[1:] if sort.startswith("-") else f"-{sort}"


def datetime_local(instant: datetime) -> str:
    """Return an instant as the value of a `datetime-local` input: UTC without an offset.

    Milliseconds, and then seconds, are left out where they are 0.
    """
    text = instant.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
    return text.removesuffix(".000").removesuffix(":00")
