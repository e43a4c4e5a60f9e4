"""Traces: what the rest of wds knows of them. Off unless the environment asks for them.

While off, nothing of OpenTelemetry is imported and every call here does nothing. While on,
`otel` does the recording. An event carries its trace in its document, as the two headers of
https://www.w3.org/TR/trace-context/, so that a delivery in another process, minutes later,
belongs to the trace of the request that brought the event.
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
        """What log lines about this claim should carry: `trace_id`, or nothing."""

    def sent(self) -> Mapping[str, str]:
        """Note that the request leaves now; return the headers to add to it."""

    def answered(self, result: AttemptResult) -> None:
        """Note how the request ended."""

    def settled(self, status: str | None) -> None:
        """Note the event's status once the outcome is recorded; None if it could not be."""


class Tracer(Protocol):
    """What a process records."""

    @property
    def middlewares(self) -> Sequence[Middleware]:
        """What an application puts around all else, to record requests."""

    @property
    def stop_s(self) -> float:
        """Most seconds that `stop` takes."""

    def sending(self, events: Sequence[NewEvent]) -> AbstractContextManager[Sequence[NewEvent]]:
        """Record that one request's events are stored inside the block.

        The value is the events to store, each with its trace.
        """

    def inserting(self, events: Sequence[NewEvent]) -> AbstractContextManager[None]:
        """Record one write of many events, in the trace of each."""

    def delivery(self, claim: Claim, *, limited: bool) -> AbstractContextManager[DeliveryTrace]:
        """Record one attempt; `limited` if it waits for a slot."""

    async def stop(self) -> None:
        """Export what is left, for as long as `stop_s` allows."""


class _Nothing:
    """Records nothing: a `Tracer` and every `DeliveryTrace` of it."""

    middlewares = ()
    stop_s = 0.0
    facts: Mapping[str, str] = {}
    _no_headers: Mapping[str, str] = {}
    _no_block: AbstractContextManager[None] = nullcontext()

    def sending(self, events: Sequence[NewEvent]) -> AbstractContextManager[Sequence[NewEvent]]:
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


OFF = _Nothing()


def wanted(environ: Mapping[str, str]) -> bool:
    """Tell whether the standard variables ask for traces that wds can export.

    https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/: an
    empty value is unset, `OTEL_SDK_DISABLED` wins, and without a collector's address or
    `OTEL_TRACES_EXPORTER=otlp` there is nowhere to send traces to.
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
    """Return the recorder that `environ` asks for, or `OFF`; call once a process.

    A process without the extra `otel` works all the same and says what is missing: traces are
    never a reason not to deliver.

    Raises:
        SettingsError: a variable that begins with `OTEL_` cannot be used.
    """
    if not wanted(environ):
        return OFF
    for name in (each for each in ENDPOINTS if environ.get(each, "").strip()):
        if not environ.get(name, "").strip().startswith(("http://", "https://")):
            raise SettingsError([f"{name}: must be a URL that begins with http:// or https://"])
    protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), PROTOCOL)
    if protocol != PROTOCOL:
        log.warning("tracing_protocol", wanted=protocol, used=PROTOCOL)
    # The SDK reads the environment itself, and knows nothing of `.env`.
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
