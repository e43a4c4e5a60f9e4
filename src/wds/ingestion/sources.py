"""Sources: each sender, its signature, and where its event type and idempotency key are. Pure.

`POST /webhooks/ingest` is the source `default`, with the scheme `wds` and WDS_HMAC_SECRET. The
others are tables of a TOML file, which `cli.configuration` reads:

    [sources.NAME]               letters, digits, - and _
    scheme = "github"            the name of a scheme in signing/registry.py
    secrets = ["..."]            newest first while rotating
    secrets_from = "VARIABLE"    an environment variable with more of them, separated by spaces
    tolerance = 300              seconds; only where the scheme signs a timestamp
    event_type = ["header:X-Kind", "body:data.kind"]     instead of the scheme's own
    idempotency_key = ["body:id"]                        likewise

Every mistake is reported, by source and line. An unknown name is a mistake too: a setting that is
silently ignored may be the one that should protect something.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wds.domain.errors import SettingsError
from wds.signing.registry import SCHEMES
from wds.signing.scheme import TOLERANCE_S, Proof, Scheme, single_header, verify
from wds.signing.wds import WDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from multidict import MultiMapping

    from wds.signing.scheme import Key

DEFAULT_SOURCE = "default"
RESERVED = {DEFAULT_SOURCE: "is what WDS_HMAC_SECRET configures", "batch": "is a route of its own"}
MAX_TOLERANCE_S = 24 * 3600

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOCATION = re.compile(r"header:[A-Za-z0-9-]{1,64}|body:[^\s.]+(\.[^\s.]+)*|signature")
_FIELDS = ("scheme", "secrets", "secrets_from", "tolerance", "event_type", "idempotency_key")


@dataclass(frozen=True, slots=True)
class Location:
    """The place of a value in a request: a header, a field of the body, or the signature itself.

    The signature serves as an idempotency key of last resort: the same request sent again has the
    same one.

    Attributes:
        kind: `header`, `body` or `signature`.
        name: the header's name, or the field's dotted path.
    """

    kind: str
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> Location:
        """Read `header:NAME`, `body:FIELD.FIELD` or `signature`."""
        kind, _, name = text.partition(":")
        return cls(kind, name)

    def value(self, body: Mapping[str, Any], headers: MultiMapping[str], proof: Proof) -> object:
        """Return the value at this location; None without one.

        Raises:
            Refusal: 400 if it is in a header and the header is repeated.
        """
        if self.kind == "signature":
            return proof.signature
        if self.kind == "header":
            return single_header(headers, self.name)
        value: object = body
        for part in self.name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One sender, or several that share secrets. Its `repr` never shows the secrets.

    Attributes:
        keys: newest first.
        tolerance_s: allowed distance of a signed timestamp from now.
        event_type, idempotency_key: where these are, in order of precedence.
        signs_idempotency_key: a repeated idempotency key means a repeated event, even if the
            bytes differ, because the sender signed the key.
        body_fields: the top-level fields of a body that wds reads.
    """

    name: str
    scheme: Scheme
    keys: tuple[Key, ...] = field(repr=False)
    tolerance_s: float = TOLERANCE_S
    event_type: tuple[Location, ...]
    idempotency_key: tuple[Location, ...]
    signs_idempotency_key: bool = False
    body_fields: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Collect `body_fields`."""
        locations = (*self.event_type, *self.idempotency_key)
        names = dict.fromkeys(
            location.name.partition(".")[0] for location in locations if location.kind == "body"
        )
        names |= dict.fromkeys(self.scheme.handshake_fields)
        object.__setattr__(self, "body_fields", tuple(names))

    def verify(self, headers: MultiMapping[str], body: bytes, now: float) -> Proof:
        """Return which of the source's keys signed `body`; see `signing.scheme.verify`."""
        return verify(self.scheme, self.keys, headers, body, now=now, tolerance_s=self.tolerance_s)


def default_source(secrets: tuple[str, ...]) -> Source:
    """Return the source of `POST /webhooks/ingest`."""
    return _source(DEFAULT_SOURCE, WDS, tuple(secret.encode() for secret in secrets), {})


def load(text: str, environ: Mapping[str, str], file: str) -> dict[str, Source]:
    """Read the sources in `text`, the content of a TOML file; messages call the file `file`.

    Raises:
        SettingsError: every mistake, each with its line. It does not repeat secrets.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([f"{file}: not TOML: {error}"]) from None
    problems = [
        f"{file}{_line(text, key)}: {key} is not allowed here; sources are tables [sources.NAME]"
        for key in document
        if key != "sources"
    ]
    tables = document.get("sources", {})
    if not isinstance(tables, dict):
        raise SettingsError([*problems, f"{file}: sources must be tables [sources.NAME]"])
    sources: dict[str, Source] = {}
    for name, table in tables.items():
        reader = _Table(name, table, environ)
        source = reader.read()
        if source is not None:
            sources[name] = source
        problems += [
            f"{file}{_line(text, f'sources.{name}', key)}: sources.{name}"
            f"{f'.{key}' if key else ''} {message}"
            for key, message in reader.problems
        ]
    if problems:
        raise SettingsError(problems)
    return sources


class _Table:
    """Reads one table and collects its problems as (field, message); the field may be ''."""

    def __init__(self, name: str, table: object, environ: Mapping[str, str]) -> None:
        self._name = name
        self._table: dict[str, Any] = table if isinstance(table, dict) else {}
        self._environ = environ
        self.problems: list[tuple[str, str]] = []
        if not isinstance(table, dict):
            self.problems.append(("", "must be a table"))
        if not _NAME.fullmatch(name):
            self.problems.append(("", "is not a name: 1 to 64 letters, digits, - and _"))
        if name in RESERVED:
            self.problems.append(("", f"{RESERVED[name]}; choose another name"))
        for key in self._table:
            if key not in _FIELDS:
                self.problems.append((key, f"is not one of {', '.join(_FIELDS)}"))

    def read(self) -> Source | None:
        """Return the source, or None if there are problems."""
        scheme = self._scheme()
        secrets = list(self._secrets())
        tolerance = self._tolerance(scheme)
        locations = {key: self._locations(key) for key in ("event_type", "idempotency_key")}
        keys = [] if scheme is None else list(self._keys(scheme, secrets))
        if self.problems or scheme is None:
            return None
        own = {key: value for key, value in locations.items() if value is not None}
        return _source(self._name, scheme, tuple(keys), own, tolerance)

    def _scheme(self) -> Scheme | None:
        name = self._table.get("scheme")
        scheme = SCHEMES.get(name) if isinstance(name, str) else None
        if scheme is None:
            problem = "is missing" if name is None else "is unknown"
            self.problems.append(("scheme", f"{problem}; it is one of {', '.join(SCHEMES)}"))
        return scheme

    def _secrets(self) -> Iterator[tuple[str, str]]:
        """Yield (field, secret): those of the file, then those of the environment."""
        before = len(self.problems)
        in_file = self._table.get("secrets", [])
        if not isinstance(in_file, list) or not all(
            isinstance(each, str) and each.strip() for each in in_file
        ):
            self.problems.append(("secrets", "must be a list of strings, none of them empty"))
            in_file = []
        yield from (("secrets", secret) for secret in in_file)
        in_environment = self._environment_secrets()
        yield from (("secrets_from", secret) for secret in in_environment)
        if not in_file and not in_environment and len(self.problems) == before:
            self.problems.append(("", "has no secret: give secrets or secrets_from"))

    def _environment_secrets(self) -> list[str]:
        variable = self._table.get("secrets_from")
        if variable is None:
            return []
        if not isinstance(variable, str) or not _VARIABLE.fullmatch(variable):
            self.problems.append(("secrets_from", "must be the name of one variable"))
            return []
        secrets = self._environ.get(variable, "").split()
        if not secrets:
            text = f"names {variable}, which is not set in the environment"
            self.problems.append(("secrets_from", text))
        return secrets

    def _keys(self, scheme: Scheme, secrets: list[tuple[str, str]]) -> Iterator[Key]:
        seen: set[str] = set()
        for number, (origin, secret) in enumerate(secrets, 1):
            try:
                key = scheme.read_key(secret)
            except UnicodeEncodeError:
                self.problems.append((origin, f"number {number} is not UTF-8"))
            except ValueError as error:
                self.problems.append((origin, f"number {number} {error}"))
            else:
                if secret in seen:
                    self.problems.append((origin, f"number {number} repeats an earlier one"))
                yield key
            seen.add(secret)

    def _tolerance(self, scheme: Scheme | None) -> float:
        value = self._table.get("tolerance", TOLERANCE_S)
        if isinstance(value, bool) or not isinstance(value, int | float):
            value = -1
        if not 1 <= value <= MAX_TOLERANCE_S:
            self.problems.append(("tolerance", f"must be 1 to {MAX_TOLERANCE_S} seconds"))
        if "tolerance" in self._table and scheme is not None and not scheme.signs_timestamp:
            text = f"has no effect: {scheme.name} signs no timestamp"
            self.problems.append(("tolerance", text))
        return float(value)

    def _locations(self, key: str) -> tuple[Location, ...] | None:
        """Return the locations that replace the scheme's own; None to keep those."""
        if key not in self._table:
            return None
        value = self._table[key]
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(
            isinstance(each, str) and _LOCATION.fullmatch(each) for each in texts
        ):
            text = "must be header:NAME, body:FIELD.FIELD or signature, or a list of them"
            self.problems.append((key, text))
            return None
        return tuple(map(Location.parse, texts))


def _source(
    name: str,
    scheme: Scheme,
    keys: tuple[Key, ...],
    locations: Mapping[str, tuple[Location, ...]],
    tolerance_s: float = TOLERANCE_S,
) -> Source:
    return Source(
        name=name,
        scheme=scheme,
        keys=keys,
        tolerance_s=tolerance_s,
        event_type=locations.get("event_type", tuple(map(Location.parse, scheme.event_type))),
        idempotency_key=locations.get(
            "idempotency_key", tuple(map(Location.parse, scheme.idempotency_key))
        ),
        signs_idempotency_key=scheme.signs_idempotency_key and "idempotency_key" not in locations,
    )


def _line(text: str, table: str, key: str = "") -> str:
    """Return ` line N` of a field, else of its table's header, else ''.

    It finds the usual spellings only; TOML has others.
    """
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
