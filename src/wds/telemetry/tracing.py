"""Traces: the interface that the rest of wds uses. Off unless the environment turns them on.

While off, OpenTelemetry is not imported and every call here does nothing. While on,
`opentelemetry_tracer` records. An event's document contains its trace, as the two headers of
https://www.w3.org/TR/trace-context/. So a delivery in another process, minutes later, belongs to
the trace of the request that brought the event.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol

import structlog

from wds.domain.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from aiohttp.typedefs import Middleware

    from wds.domain.attempt_results import AttemptResult
    from wds.domain.deliveries import Claim
    from wds.domain.events import NewEvent

log = structlog.get_logger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
INSTALL = "pip install 'wds[otel]'"


class DeliveryTrace(Protocol):
    """The recording of one attempt, step by step."""

    @property
    def facts(self) -> Mapping[str, str]:
        """The fields for log lines about this claim: `trace_id`, or none."""

    def sent(self) -> Mapping[str, str]:
        """Record that the request leaves now; return the headers to add to it."""

    def answered(self, result: AttemptResult) -> None:
        """Record the result of the request."""

    def settled(self, status: str | None) -> None:
        """Record the event's status after the settlement; None if nothing could be recorded."""


class Tracer(Protocol):
    """Records the traces of one process."""

    @property
    def middlewares(self) -> Sequence[Middleware]:
        """The outermost middlewares of an application, which record requests."""

    @property
    def stop_s(self) -> float:
        """The longest time that `stop` takes, in seconds."""

    def enqueuing(self, events: Sequence[NewEvent]) -> AbstractContextManager[Sequence[NewEvent]]:
        """Record that the block stores the events of one request in the queue: the span `send`.

        Yields the events to store, each with its trace.
        """

    def inserting(self, events: Sequence[NewEvent]) -> AbstractContextManager[None]:
        """Record that the block writes many events, in the trace of each."""

    def delivery(self, claim: Claim, *, limited: bool) -> AbstractContextManager[DeliveryTrace]:
        """Record one attempt; `limited` if it waits for a slot."""

    async def stop(self) -> None:
        """Export the remaining spans, for at most `stop_s` seconds."""


class _Off:
    """A `Tracer` that records nothing, and every `DeliveryTrace` of it."""

    middlewares = ()
    stop_s = 0.0
    facts: Mapping[str, str] = {}
    _no_headers: Mapping[str, str] = {}
    _no_block: AbstractContextManager[None] = nullcontext()

    def enqueuing(self, events: Sequence[NewEvent]) -> AbstractContextManager[Sequence[NewEvent]]:
        return nullcontext(events)

    def inserting(self, _: Sequence[NewEvent]) -> AbstractContextManager[None]:
        return self._no_block

    def delivery(self, _: Claim, *, limited: bool) -> AbstractContextManager[DeliveryTrace]:  # noqa: ARG002
        return self

    def __enter__(self) -> DeliveryTrace:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def sent(self) -> Mapping[str, str]:
        return self._no_headers

    def answered(self, _: AttemptResult) -> None:
        pass

    def settled(self, _: str | None) -> None:
        pass

    async def stop(self) -> None:
        pass


OFF = _Off()


def is_on(environ: Mapping[str, str]) -> bool:
    """Whether the standard variables turn on traces that wds can export.

    https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/: an
    empty value is unset, `OTEL_SDK_DISABLED` takes precedence, and traces need a collector's
    address or `OTEL_TRACES_EXPORTER=otlp`.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter not in {"", "otlp", "none"}:
        log.warning("tracing_off", cause="OTEL_TRACES_EXPORTER must be otlp or none")
    if exporter:
        return exporter == "otlp"
    return any(environ.get(name, "").strip() for name in ENDPOINTS)


def start(environ: Mapping[str, str], *, role: str) -> Tracer:
    """Return the tracer that `environ` configures, or `OFF`. Call it once per process.

    Without the extra `otel` the process logs what is missing and runs without traces: tracing
    never stops deliveries.

    Raises:
        SettingsError: a variable that begins with `OTEL_` cannot be used.
    """
    if not is_on(environ):
        return OFF
    for name in (each for each in ENDPOINTS if environ.get(each, "").strip()):
        if not environ.get(name, "").strip().startswith(("http://", "https://")):
            raise SettingsError([f"{name}: must be a URL that begins with http:// or https://"])
    protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), PROTOCOL)
    if protocol != PROTOCOL:
        log.warning("tracing_protocol", wanted=protocol, used=PROTOCOL)
    # The SDK reads only the process's environment, which lacks the variables of `.env`.
    for name, value in environ.items():
        if name.startswith("OTEL_"):
            os.environ.setdefault(name, value)
    try:
        from wds.telemetry import opentelemetry_tracer  # noqa: PLC0415 - only while on
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        log.warning("tracing_off", cause="OpenTelemetry is not installed", cure=INSTALL)
        return OFF
    try:
        return opentelemetry_tracer.Recorder(role)
    except ValueError as error:
        raise SettingsError([f"OTEL_*: {error}"]) from error
