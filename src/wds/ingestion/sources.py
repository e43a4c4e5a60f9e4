"""Sources: who may send, how each signs, and where its event type and idempotency key are. Pure.

`POST /webhooks/ingest` is the source `default`, with the scheme `wds` and WDS_HMAC_SECRET. The
others are tables of a TOML file, which `__main__` reads:

    [sources.NAME]               letters, digits, - and _
    scheme = "github"            wds, github, stripe, shopify, slack or standard
    secrets = ["..."]            newest first while rotating
    secrets_from = "VARIABLE"    more of them, separated by spaces, from the environment
    tolerance = 300              seconds; only where the scheme signs a timestamp
    event_type = ["header:X-Kind", "body:data.kind"]     instead of the scheme's own
    idempotency_key = ["body:id"]                        likewise

Every mistake is listed, by source and line. A name that means nothing here is one of them: a
setting that is silently ignored may be the one that was to protect something.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wds.domain.errors import SettingsError
from wds.signing.schemes import SCHEMES, TOLERANCE_S, WDS, Proof, Scheme, only, verify

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from multidict import MultiMapping

    from wds.signing.standard_webhooks import Key

DEFAULT = "default"
RESERVED = {DEFAULT: "is what WDS_HMAC_SECRET configures", "batch": "is a route of its own"}
MAX_TOLERANCE_S = 24 * 3600

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLACE = re.compile(r"header:[A-Za-z0-9-]{1,64}|body:[^\s.]+(\.[^\s.]+)*|signature")
_FIELDS = ("scheme", "secrets", "secrets_from", "tolerance", "event_type", "idempotency_key")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a request a value is: a header, a field of the body, or the signature itself.

    The signature serves as a key of last resort: the same request sent again has the same.
    """

    kind: str
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read `header:NAME`, `body:FIELD.FIELD` or `signature`."""
        kind, _, name = text.partition(":")
        return cls(kind, name)

    def value(self, body: Mapping[str, Any], headers: MultiMapping[str], proof: Proof) -> object:
        """Return what is there; None if nothing is."""
        if self.kind == "signature":
            return proof.signature
        if self.kind == "header":
            return only(headers, self.name)
        found: object = body
        for part in self.name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One sender, or several who share secrets. Its secrets never show in its `repr`.

    Attributes:
        keys: newest first.
        vouches: a repeated idempotency key means a repeated event, whatever its bytes.
        members: of a body, all that its places are in, by name.
    """

    name: str
    scheme: Scheme
    keys: tuple[Key, ...] = field(repr=False)
    tolerance_s: float = TOLERANCE_S
    event_type: tuple[Place, ...]
    idempotency_key: tuple[Place, ...]
    vouches: bool = False
    members: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Find out what of a body is ever asked for."""
        places = (*self.event_type, *self.idempotency_key)
        found = dict.fromkeys(
            place.name.partition(".")[0] for place in places if place.kind == "body"
        )
        object.__setattr__(self, "members", tuple(found))

    def verify(self, headers: MultiMapping[str], body: bytes, now: float) -> Proof:
        """See `schemes.verify`."""
        return verify(self.scheme, self.keys, headers, body, now=now, tolerance_s=self.tolerance_s)


def default(secrets: tuple[str, ...]) -> Source:
    """Return the source of `POST /webhooks/ingest`."""
    return _source(DEFAULT, WDS, tuple(secret.encode() for secret in secrets), {})


def load(text: str, environ: Mapping[str, str], file: str) -> dict[str, Source]:
    """Read the sources of a file; `file` is what messages call it.

    Raises:
        SettingsError: every mistake, each with its place. Secrets are not repeated.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([f"{file}: not TOML: {error}"]) from None
    problems = [
        f"{file}{_line(text, key)}: {key} means nothing here; sources are tables [sources.NAME]"
        for key in document
        if key != "sources"
    ]
    tables = document.get("sources", {})
    if not isinstance(tables, dict):
        raise SettingsError([*problems, f"{file}: sources must be tables [sources.NAME]"])
    found: dict[str, Source] = {}
    for name, table in tables.items():
        reader = _Table(name, table, environ)
        source = reader.read()
        if source is not None:
            found[name] = source
        problems += [
            f"{file}{_line(text, f'sources.{name}', key)}: sources.{name}"
            f"{f'.{key}' if key else ''} {message}"
            for key, message in reader.problems
        ]
    if problems:
        raise SettingsError(problems)
    return found


class _Table:
    """Reads one table and collects what is wrong with it, each by its field ('' for all)."""

    def __init__(self, name: str, table: object, environ: Mapping[str, str]) -> None:
        self._name = name
        self._table: dict[str, Any] = table if isinstance(table, dict) else {}
        self._environ = environ
        self.problems: list[tuple[str, str]] = []
        if not isinstance(table, dict):
            self.problems.append(("", "must be a table"))
        if not _NAME.fullmatch(name):
            self.problems.append(("", "is no name: 1 to 64 letters, digits, - and _"))
        if name in RESERVED:
            self.problems.append(("", f"{RESERVED[name]}; choose another name"))
        for key in self._table:
            if key not in _FIELDS:
                self.problems.append((key, f"is none of {', '.join(_FIELDS)}"))

    def read(self) -> Source | None:
        """Return the source, or None if anything is wrong."""
        scheme = self._scheme()
        secrets = list(self._secrets())
        tolerance = self._tolerance(scheme)
        places = {key: self._places(key) for key in ("event_type", "idempotency_key")}
        keys = [] if scheme is None else list(self._keys(scheme, secrets))
        if self.problems or scheme is None:
            return None
        given = {key: found for key, found in places.items() if found is not None}
        return _source(self._name, scheme, tuple(keys), given, tolerance)

    def _scheme(self) -> Scheme | None:
        name = self._table.get("scheme")
        scheme = SCHEMES.get(name) if isinstance(name, str) else None
        if scheme is None:
            wrong = "is missing" if name is None else "is unknown"
            self.problems.append(("scheme", f"{wrong}; it is one of {', '.join(SCHEMES)}"))
        return scheme

    def _secrets(self) -> Iterator[tuple[str, str]]:
        """Yield (field, secret): those of the file, then those of the environment."""
        before = len(self.problems)
        given = self._table.get("secrets", [])
        if not isinstance(given, list) or not all(
            isinstance(each, str) and each.strip() for each in given
        ):
            self.problems.append(("secrets", "must be a list of strings, none of them empty"))
            given = []
        yield from (("secrets", secret) for secret in given)
        variable = self._table.get("secrets_from")
        more: list[str] = []
        if variable is not None:
            if not isinstance(variable, str) or not _VARIABLE.fullmatch(variable):
                self.problems.append(("secrets_from", "must be the name of one variable"))
            else:
                more = self._environ.get(variable, "").split()
                if not more:
                    text = f"names {variable}, which is not set in the environment"
                    self.problems.append(("secrets_from", text))
        yield from (("secrets_from", secret) for secret in more)
        if not given and not more and len(self.problems) == before:
            self.problems.append(("", "has no secret: give secrets or secrets_from"))

    def _keys(self, scheme: Scheme, secrets: list[tuple[str, str]]) -> Iterator[Key]:
        seen: set[str] = set()
        for number, (where, secret) in enumerate(secrets, 1):
            try:
                key = scheme.key(secret)
            except UnicodeEncodeError:
                self.problems.append((where, f"number {number} is not UTF-8"))
            except ValueError as error:
                self.problems.append((where, f"number {number} {error}"))
            else:
                if secret in seen:
                    self.problems.append((where, f"number {number} is there already"))
                yield key
            seen.add(secret)

    def _tolerance(self, scheme: Scheme | None) -> float:
        value = self._table.get("tolerance", TOLERANCE_S)
        if isinstance(value, bool) or not isinstance(value, int | float):
            value = -1
        if not 1 <= value <= MAX_TOLERANCE_S:
            self.problems.append(("tolerance", f"must be 1 to {MAX_TOLERANCE_S} seconds"))
        if "tolerance" in self._table and scheme is not None and not scheme.timed:
            text = f"has no effect: {scheme.name} signs no timestamp"
            self.problems.append(("tolerance", text))
        return float(value)

    def _places(self, key: str) -> tuple[Place, ...] | None:
        """Return what stands for the scheme's own places; None if nothing does."""
        if key not in self._table:
            return None
        given = self._table[key]
        many = given if isinstance(given, list) else [given]
        if not many or not all(isinstance(each, str) and _PLACE.fullmatch(each) for each in many):
            text = "must be header:NAME, body:FIELD.FIELD or signature, or a list of them"
            self.problems.append((key, text))
            return None
        return tuple(map(Place.parse, many))


def _source(
    name: str,
    scheme: Scheme,
    keys: tuple[Key, ...],
    places: Mapping[str, tuple[Place, ...]],
    tolerance_s: float = TOLERANCE_S,
) -> Source:
    return Source(
        name=name,
        scheme=scheme,
        keys=keys,
        tolerance_s=tolerance_s,
        event_type=places.get("event_type", tuple(map(Place.parse, scheme.event_type))),
        idempotency_key=places.get(
            "idempotency_key", tuple(map(Place.parse, scheme.idempotency_key))
        ),
        vouches=scheme.vouches and "idempotency_key" not in places,
    )


def _line(text: str, table: str, key: str = "") -> str:
    """Return ` line N` of a table's header, or of its field; nothing if it is written otherwise."""
    header = re.compile(rf"\s*\[\s*{re.escape(table)}\s*[].]")
    start = 0
    for number, line in enumerate(text.splitlines(), 1):
        if header.match(line):
            start = number
        elif start and key and re.match(rf'\s*"?{re.escape(key)}"?\s*=', line):
            return f" line {number}"
        elif start and line.lstrip().startswith("["):
            break
        elif not start and re.match(rf"\s*{re.escape(table)}\s*=", line):
            start = number
    return f" line {start}" if start else ""
