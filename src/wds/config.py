"""Every setting: its name, default, range and meaning, in one table.

`Settings.load` is pure; `cli.command_runner` passes it the environment. It reports every mistake at
once, each by the setting's name. This module imports little, because the health check of a
container starts a process with it every few seconds.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field as dataclass_field, fields as dataclass_fields
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from wds.domain.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from wds.domain.destinations import Destination

    Parse = Callable[[str], Any]
    """Turns the text of a variable into the setting's value.

    Raises ValueError with the rest of a sentence that begins with the setting's name. The text
    itself must not be in it: it may be a secret.
    """

_Number = TypeVar("_Number", int, float)

SETTLE_MARGIN_S = 0.5
"""Seconds that a lease must leave after the longest request, to record its outcome."""
SLOT_WAIT_S = 1.2
"""The furthest ahead, in seconds, that a dispatcher reserves a slot of the rate limit."""

WILDCARD_HOSTS = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to
"""Values of WDS_HOST that stand for every address of this machine."""

_WEEK_S = 7 * 24 * 3600
_TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE = frozenset({"0", "false", "f", "no", "n", "off"})

MEBIBYTE = 1024 * 1024
MAX_BODY_BYTES = 15 * MEBIBYTE
"""Upper end of WDS_MAX_BODY_BYTES: a document of MongoDB has at most 16 MiB."""


def _integer(low: int, high: int) -> Parse:
    """Read a plain decimal number, without Python's other spellings."""

    def parse(text: str) -> int:
        digits = text.strip()
        if not re.fullmatch(r"-?[0-9]{1,20}", digits):
            msg = "must be a whole number"
            raise ValueError(msg)
        return _in_range(int(digits), low, high)

    return parse


def _seconds(low: float, high: float) -> Parse:
    """Read a finite number, with or without decimals."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            msg = "must be a number"
            raise ValueError(msg)
        return _in_range(number, low, high)

    return parse


def _in_range(number: _Number, low: float, high: float) -> _Number:
    if not low <= number <= high:
        msg = f"must be {low} to {high}"
        raise ValueError(msg)
    return number


def _port(*, zero: bool = False) -> Parse:
    return _integer(0 if zero else 1, 65535)


def _boolean(text: str) -> bool:
    word = text.lower()
    if word not in _TRUE | _FALSE:
        msg = "must be true or false"
        raise ValueError(msg)
    return word in _TRUE


def _matching(pattern: str, rule: str) -> Parse:
    """Read text that the whole of `pattern` matches; `rule` describes such text in words."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(rule)
        return text

    return parse


def _schedule(text: str) -> tuple[float, ...]:
    """Read comma-separated seconds: at least one number, each from 0 to a week."""
    if not re.fullmatch(r"\s*\d+(\.\d+)?(\s*,\s*\d+(\.\d+)?)*\s*", text, re.ASCII):
        msg = "must be seconds separated by commas, such as 1,2,4"
        raise ValueError(msg)
    numbers = tuple(map(float, text.split(",")))
    if max(numbers) > _WEEK_S:
        msg = f"must be at most {_WEEK_S} seconds each"
        raise ValueError(msg)
    return numbers


def _words(text: str) -> tuple[str, ...]:
    """Read words separated by white space."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        msg = "must be UTF-8"
        raise ValueError(msg)
    return tuple(text.split())


def _signing_keys(text: str) -> tuple[str, ...]:
    """Read keys of Standard Webhooks that can sign, separated by white space."""
    from wds.signing import standard_webhooks  # noqa: PLC0415 - it imports cryptography: 30 ms

    words = _words(text)
    for word in words:
        standard_webhooks.sign([standard_webhooks.read_key(word)], "", 0, b"")
    return words


def _url(*schemes: str) -> Parse:
    def parse(text: str) -> str:
        try:
            parts = urlsplit(text)
            usable = parts.scheme in schemes and bool(parts.netloc)
            if parts.scheme in {"http", "https"}:
                usable = usable and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or not re.fullmatch(r"[!-~]+", text):
            msg = f"must be a URL that begins with {' or '.join(f'{s}://' for s in schemes)}"
            raise ValueError(msg)
        return text

    return parse


def _setting(
    env: str,
    parse: Parse,
    doc: str,
    default: Any = None,  # noqa: ANN401
    *,
    secret: bool = False,
) -> Any:  # noqa: ANN401
    metadata = {"env": env, "parse": parse, "doc": doc, "secret": secret}
    return dataclass_field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one process. Secrets never show in its `repr`."""

    hmac_secrets: tuple[str, ...] = _setting(
        "WDS_HMAC_SECRET",
        _words,
        "Secret that senders sign with; several, separated by spaces, during a rotation. Required.",
        (),
        secret=True,
    )
    config: str | None = _setting(
        "WDS_CONFIG",
        str,
        "File that defines the sources. Unset: `wds.toml` in the working directory, if it exists.",
    )
    mongo_url: str | None = _setting(
        "WDS_MONGO_URL",
        _url("mongodb", "mongodb+srv"),
        "MongoDB: a replica set or a sharded cluster. If unset, `up` starts one.",
        secret=True,
    )
    mongo_db: str = _setting(
        "WDS_MONGO_DB",
        _matching(
            r"(?!(admin|config|local)\Z)[A-Za-z0-9_-]{1,38}",
            "must be 1 to 38 letters, digits, _ and -, and not admin, config or local",
        ),
        "Name of the database.",
        "wds",
    )
    redis_url: str | None = _setting(
        "WDS_REDIS_URL",
        _url("redis", "rediss"),
        "Redis, which holds the rate limit. If unset, `up` starts one.",
        secret=True,
    )
    host: str = _setting("WDS_HOST", str, "Address to listen on.", "127.0.0.1")
    port: int = _setting("WDS_PORT", _port(), "Port of the ingest service.", 8000)
    downstream_url: str = _setting(
        "WDS_DOWNSTREAM_URL",
        _url("http", "https"),
        "URL that events are delivered to.",
        "http://127.0.0.1:8001/downstream/receive",
        secret=True,
    )
    downstream_secrets: tuple[str, ...] = _setting(
        "WDS_DOWNSTREAM_SECRET",
        _signing_keys,
        "Signs deliveries by Standard Webhooks: `whsec_` or `whsk_`; several during a rotation.",
        (),
        secret=True,
    )
    rate_limit: int = _setting(
        "WDS_RATE_LIMIT",
        _integer(0, 100_000),
        "Limit on requests to the downstream in any second, over all dispatchers; 0: no limit.",
        3,
    )
    backoff: tuple[float, ...] = _setting(
        "WDS_BACKOFF",
        _schedule,
        "Seconds to wait after the first failure, the second, and so on; the last one repeats.",
        (1.0, 2.0, 4.0, 8.0, 16.0),
    )
    max_attempts: int = _setting(
        "WDS_MAX_ATTEMPTS",
        _integer(1, 100),
        "Attempts before an event fails permanently, counted anew after a replay.",
        5,
    )
    request_timeout: float = _setting(
        "WDS_REQUEST_TIMEOUT",
        _seconds(0.05, 600),
        "Maximum duration of one delivery, in seconds.",
        10.0,
    )
    lease: float = _setting(
        "WDS_LEASE",
        _seconds(0.1, 3600),
        "Seconds that a dispatcher owns a claimed event; after a crash, the event waits that long.",
        30.0,
    )
    poll_interval: float = _setting(
        "WDS_POLL_INTERVAL",
        _seconds(0.001, 60),
        "Seconds between polls of the queue while nothing is due and no change stream notifies.",
        0.05,
    )
    listen: bool = _setting(
        "WDS_LISTEN",
        _boolean,
        "false: idle dispatchers poll, instead of being notified by a change stream.",
        True,  # noqa: FBT003 - a default, read beside its name
    )
    concurrency: int = _setting(
        "WDS_CONCURRENCY",
        _integer(1, 10_000),
        "Limit on requests in flight per dispatcher; as many outcomes may wait to be recorded.",
        128,
    )
    metrics_port: int = _setting(
        "WDS_METRICS_PORT",
        _port(zero=True),
        "Port of a dispatcher's own metrics and health; 0 picks a free one.",
        9101,
    )
    max_body_bytes: int = _setting(
        "WDS_MAX_BODY_BYTES",
        _integer(1, MAX_BODY_BYTES),
        "Maximum size of a request's body in bytes, for one event or a batch.",
        MEBIBYTE,
    )
    body_timeout: float = _setting(
        "WDS_BODY_TIMEOUT",
        _seconds(0.05, 600),
        "Limit on seconds for a request's body to arrive, plus one for each 64 KiB of it.",
        4.0,
    )
    body_memory: int = _setting(
        "WDS_BODY_MEMORY",
        _integer(MEBIBYTE, 2**40),
        "Maximum size in bytes of all bodies that one ingest service holds at a time.",
        64 * MEBIBYTE,
    )
    operator_token: str | None = _setting(
        "WDS_OPERATOR_TOKEN",
        _matching(r"[!-~]+", "must be printable ASCII without spaces"),
        "Bearer token for all routes but ingest, health and metrics. Unset: loopback clients only.",
        secret=True,
    )
    operator_open: bool = _setting(
        "WDS_OPERATOR_OPEN",
        _boolean,
        "true opens operators' routes to every client while no token is set.",
        False,  # noqa: FBT003 - a default, read beside its name
    )
    operator_hosts: tuple[str, ...] = _setting(
        "WDS_OPERATOR_HOSTS",
        _words,
        "Host names with a dot, separated by spaces, that operators' routes accept while open.",
        (),
    )
    metrics_open: bool = _setting(
        "WDS_METRICS_OPEN",
        _boolean,
        "false protects metrics like operators' routes, on every process.",
        True,  # noqa: FBT003 - a default, read beside its name
    )
    retention_days: int | None = _setting(
        "WDS_RETENTION_DAYS",
        _integer(1, 20_000),
        "Days after which a finished event is deleted. Unset: never.",
    )
    mock_port: int = _setting("WDS_MOCK_PORT", _port(), "Port of the mock downstream.", 8001)
    mock_rate_limit: int = _setting(
        "WDS_MOCK_RATE_LIMIT",
        _integer(0, 100_000),
        "Requests per second that the mock accepts before it answers 429; 0: no limit.",
        3,
    )
    mock_failure_rate: float = _setting(
        "WDS_MOCK_FAILURE_RATE", _seconds(0, 1), "Share of requests that the mock fails.", 0.15
    )
    mock_seed: int | None = _setting(
        "WDS_MOCK_SEED", _integer(0, 2**63 - 1), "Makes the mock's failures repeatable."
    )

    @classmethod
    def load(cls, environ: Mapping[str, str], *, require: tuple[str, ...] = ()) -> Settings:
        """Read settings from a mapping of environment variables; an empty value counts as unset.

        `require` names the variables that the command cannot do without.

        Raises:
            SettingsError: every problem, by name. Secrets are not in it.
        """
        texts = {name: environ[name] for name in NAMES if environ.get(name, "").strip()}
        problems = [f"{name} is not set" for name in require if name not in texts]
        missing = len(problems)
        values = {}
        for spec in dataclass_fields(cls):
            name = spec.metadata["env"]
            if name in texts:
                try:
                    values[spec.name] = spec.metadata["parse"](texts[name])
                except ValueError as error:
                    problems.append(f"{name}: {error}")
        if len(problems) > missing:
            raise SettingsError(problems)
        settings = cls(**values)
        problems += settings._contradictions()
        if problems:
            raise SettingsError(problems)
        return settings

    @property
    def slot_wait(self) -> float:
        """The longest wait, in seconds, of a claimed event for its slot of the rate limit."""
        return SLOT_WAIT_S if self.rate_limit else 0.0

    @property
    def default_destination(self) -> Destination:
        """The destination that `WDS_DOWNSTREAM_URL` and the settings beside it describe."""
        from wds.domain.destinations import (  # noqa: PLC0415 - a health check needs no msgspec
            DEFAULT_DESTINATION,
            Destination,
        )

        return Destination(
            name=DEFAULT_DESTINATION,
            url=self.downstream_url,
            secrets=self.downstream_secrets,
            rate_limit=self.rate_limit,
            backoff=self.backoff,
            max_attempts=self.max_attempts,
            timeout_s=self.request_timeout,
            max_in_flight=self.concurrency,
        )

    def _contradictions(self) -> list[str]:
        longest = self.request_timeout + self.slot_wait + SETTLE_MARGIN_S
        problems = []
        if self.lease <= longest:
            problems.append(
                f"WDS_LEASE ({self.lease:g} s) must be longer than WDS_REQUEST_TIMEOUT"
                f" ({self.request_timeout:g} s) plus the wait for a slot ({self.slot_wait:g} s)"
                f" plus {SETTLE_MARGIN_S:g} s"
            )
        if self.body_memory < 2 * self.max_body_bytes:
            problems.append(
                f"WDS_BODY_MEMORY ({self.body_memory}) must be at least twice"
                f" WDS_MAX_BODY_BYTES ({self.max_body_bytes})"
            )
        return problems


NAMES: tuple[str, ...] = tuple(spec.metadata["env"] for spec in dataclass_fields(Settings))
"""The environment variable of every setting."""


def local_host(host: str) -> str:
    """Return the host at which a client on this machine reaches a process bound to `host`."""
    return "127.0.0.1" if host in WILDCARD_HOSTS else host


def unknown_names(environ: Mapping[str, str]) -> list[str]:
    """Return the names in `environ` that begin with WDS_ and name no setting: probably misspelt."""
    return sorted(name for name in environ if name.startswith("WDS_") and name not in NAMES)
