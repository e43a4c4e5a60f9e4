"""Every setting: its name, default, range and meaning, in one table.

`Settings.load` is pure; `__main__` hands it the environment. All mistakes are reported at
once, each by the setting's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping  # noqa: TC003 - marshmallow evaluates annotations
from dataclasses import dataclass, field as dataclass_field, fields as dataclass_fields
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import marshmallow as ma
from marshmallow import validate

from wds.domain.errors import SettingsError
from wds.signing import standard_webhooks

if TYPE_CHECKING:
    from wds.domain.destinations import Destination

SETTLE_MARGIN_S = 0.5
"""What a lease must leave, after the longest request, for its outcome to be recorded."""
SLOT_WAIT_S = 1.2
"""The furthest ahead, in seconds, that a dispatcher reserves a slot of the rate limit."""

_WEEK_S = 7 * 24 * 3600

MEBIBYTE = 1024 * 1024
MAX_BODY_BYTES = 15 * MEBIBYTE
"""Upper end of WDS_MAX_BODY_BYTES: MongoDB's documents end at 16 MiB."""


class _Numbers(ma.fields.Field[tuple[float, ...]]):
    """Comma-separated seconds, at least one, none negative, none longer than a week."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[float, ...]:  # noqa: ANN401
        if not re.fullmatch(r"\s*\d+(\.\d+)?(\s*,\s*\d+(\.\d+)?)*\s*", str(value), re.ASCII):
            msg = "must be seconds separated by commas, such as 1,2,4"
            raise ma.ValidationError(msg)
        numbers = tuple(float(part) for part in str(value).split(","))
        if max(numbers) > _WEEK_S:
            msg = f"must be at most {_WEEK_S} seconds each"
            raise ma.ValidationError(msg)
        return numbers


class _Digits(ma.fields.Integer):
    """A plain decimal number, with none of Python's other spellings."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if not re.fullmatch(r"\s*-?[0-9]{1,20}\s*", str(value)):
            raise self.make_error(key="invalid", input=value)
        return super()._deserialize(value, attr, data, **kwargs)


class _Words(ma.fields.Field[tuple[str, ...]]):
    """Words separated by white space, at least one."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[str, ...]:  # noqa: ANN401
        words = tuple(str(value).split())
        if not words:
            msg = "must not be empty"
            raise ma.ValidationError(msg)
        if any("\ud800" <= character <= "\udfff" for word in words for character in word):
            msg = "must be UTF-8"
            raise ma.ValidationError(msg)
        return words


class _SigningKeys(_Words):
    """Keys of Standard Webhooks that can sign, separated by white space."""

    def _deserialize(self, value: Any, *rest: Any, **more: Any) -> tuple[str, ...]:  # noqa: ANN401
        words = super()._deserialize(value, *rest, **more)
        for word in words:
            try:
                standard_webhooks.sign([standard_webhooks.read_key(word)], "", 0, b"")
            except ValueError as error:
                raise ma.ValidationError(str(error)) from None
        return words


def _url(*schemes: str) -> ma.fields.Field[str]:
    def check(value: str) -> None:
        try:
            parts = urlsplit(value)
            usable = parts.scheme in schemes and bool(parts.netloc)
            if parts.scheme in {"http", "https"}:
                usable = usable and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or not re.fullmatch(r"[!-~]+", value):
            msg = f"must be a URL that begins with {' or '.join(f'{s}://' for s in schemes)}"
            raise ma.ValidationError(msg)

    return ma.fields.String(validate=check)


def _integer(low: int, high: int) -> ma.fields.Integer:
    return _Digits(validate=validate.Range(low, high))


def _seconds(low: float, high: float) -> ma.fields.Float:
    return ma.fields.Float(validate=validate.Range(low, high), allow_nan=False)


def _port(*, zero: bool = False) -> ma.fields.Integer:
    return _integer(0 if zero else 1, 65535)


def _setting(
    env: str,
    parse: ma.fields.Field[Any],
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
        _Words(),
        "Secret that senders sign with; several, separated by spaces, while rotating. Required.",
        (),
        secret=True,
    )
    config: str | None = _setting(
        "WDS_CONFIG",
        ma.fields.String(),
        "File with the sources. Unset: `wds.toml` in the working directory, if there is one.",
    )
    mongo_url: str | None = _setting(
        "WDS_MONGO_URL",
        _url("mongodb", "mongodb+srv"),
        "MongoDB, a replica set or a sharded cluster. `up` starts one where this is unset.",
        secret=True,
    )
    mongo_db: str = _setting(
        "WDS_MONGO_DB",
        ma.fields.String(
            validate=validate.Regexp(r"(?!(admin|config|local)\Z)[A-Za-z0-9_-]{1,38}\Z")
        ),
        "Name of the database.",
        "wds",
    )
    redis_url: str | None = _setting(
        "WDS_REDIS_URL",
        _url("redis", "rediss"),
        "Redis, which holds the rate limit. `up` starts one where this is unset.",
        secret=True,
    )
    host: str = _setting("WDS_HOST", ma.fields.String(), "Address to listen on.", "127.0.0.1")
    port: int = _setting("WDS_PORT", _port(), "Port of the ingest service.", 8000)
    downstream_url: str = _setting(
        "WDS_DOWNSTREAM_URL",
        _url("http", "https"),
        "Where events are delivered to.",
        "http://127.0.0.1:8001/downstream/receive",
        secret=True,
    )
    downstream_secrets: tuple[str, ...] = _setting(
        "WDS_DOWNSTREAM_SECRET",
        _SigningKeys(),
        "Signs deliveries as Standard Webhooks: `whsec_` or `whsk_`, several while rotating.",
        (),
        secret=True,
    )
    rate_limit: int = _setting(
        "WDS_RATE_LIMIT",
        _integer(0, 100_000),
        "Most requests to the downstream in any second, over all dispatchers; 0 for no limit.",
        3,
    )
    backoff: tuple[float, ...] = _setting(
        "WDS_BACKOFF",
        _Numbers(),
        "Seconds to wait after each failure in turn; the last repeats.",
        (1.0, 2.0, 4.0, 8.0, 16.0),
    )
    max_attempts: int = _setting(
        "WDS_MAX_ATTEMPTS", _integer(1, 100), "Most requests for one event.", 5
    )
    request_timeout: float = _setting(
        "WDS_REQUEST_TIMEOUT", _seconds(0.05, 600), "Seconds that one delivery may take.", 10.0
    )
    lease: float = _setting(
        "WDS_LEASE",
        _seconds(0.1, 3600),
        "Seconds that a dispatcher owns an event it claimed; after a crash, the wait.",
        30.0,
    )
    poll_interval: float = _setting(
        "WDS_POLL_INTERVAL",
        _seconds(0.001, 60),
        "Seconds between looks at the queue while nothing is due and nobody tells of events.",
        0.05,
    )
    listen: bool = _setting(
        "WDS_LISTEN",
        ma.fields.Boolean(),
        "false: idle dispatchers keep looking, instead of being told of events by a change stream.",
        True,  # noqa: FBT003 - a default, read beside its name
    )
    concurrency: int = _setting(
        "WDS_CONCURRENCY",
        _integer(1, 10_000),
        "Most requests in flight per dispatcher; as many again may wait to be recorded.",
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
        "Most bytes of a request's body, single or batch.",
        MEBIBYTE,
    )
    body_timeout: float = _setting(
        "WDS_BODY_TIMEOUT",
        _seconds(0.05, 600),
        "Seconds that a request's body may take, and one more for every 64 KiB of it.",
        4.0,
    )
    body_memory: int = _setting(
        "WDS_BODY_MEMORY",
        _integer(MEBIBYTE, 2**40),
        "Most bytes of all bodies together that one ingest service holds.",
        64 * MEBIBYTE,
    )
    operator_token: str | None = _setting(
        "WDS_OPERATOR_TOKEN",
        ma.fields.String(validate=validate.Regexp(r"[!-~]+\Z")),
        "Bearer token for all but ingest, health and metrics. Unset: loopback clients only.",
        secret=True,
    )
    operator_open: bool = _setting(
        "WDS_OPERATOR_OPEN",
        ma.fields.Boolean(),
        "true opens operators' routes to every client while no token is set.",
        False,  # noqa: FBT003 - a default, read beside its name
    )
    operator_hosts: tuple[str, ...] = _setting(
        "WDS_OPERATOR_HOSTS",
        _Words(),
        "Names with a dot, separated by spaces, that operators' routes may be asked by while open.",
        (),
    )
    metrics_open: bool = _setting(
        "WDS_METRICS_OPEN",
        ma.fields.Boolean(),
        "false guards metrics like operators' routes, on every process.",
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
        "Requests a second that the mock takes before it answers 429; 0 for no limit.",
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
        """Read settings from a mapping of environment variables; an empty value is unset.

        `require` names the variables that this command cannot do without.

        Raises:
            SettingsError: listing every problem by name. Values of secrets are not repeated.
        """
        specs = {f.metadata["env"]: f for f in dataclass_fields(cls)}
        given = {name: environ[name] for name in specs if environ.get(name, "").strip()}
        schema = ma.Schema.from_dict(
            {spec.name: _named(spec.metadata["parse"], name) for name, spec in specs.items()}
        )()
        problems = [f"{name} is not set" for name in require if name not in given]
        try:
            values = schema.load(given)
        except ma.ValidationError as error:
            messages: Any = error.messages
            problems += [f"{name}: {text}" for name in messages for text in messages[name]]
            raise SettingsError(problems) from None
        settings = cls(**values)
        problems += settings._contradictions()
        if problems:
            raise SettingsError(problems)
        return settings

    @property
    def slot_wait(self) -> float:
        """Most seconds that a claimed event waits for its slot of the rate limit."""
        return SLOT_WAIT_S if self.rate_limit else 0.0

    @property
    def default_destination(self) -> Destination:
        """The destination that `WDS_DOWNSTREAM_URL` and the settings beside it describe."""
        from wds.domain.destinations import (  # noqa: PLC0415 - a health check needs no msgspec
            DEFAULT,
            Destination,
        )

        return Destination(
            name=DEFAULT,
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


def unknown(environ: Mapping[str, str]) -> list[str]:
    """Return the names in `environ` that look like settings and are none: likely typing errors."""
    return sorted(name for name in environ if name.startswith("WDS_") and name not in NAMES)


def _named(parse: ma.fields.Field[Any], env: str) -> ma.fields.Field[Any]:
    parse.data_key = env
    return parse
