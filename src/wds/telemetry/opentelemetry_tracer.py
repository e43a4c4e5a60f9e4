"""The tracer behind `tracing`, with OpenTelemetry's SDK. Imported only while tracing is on.

One trace from the sender to the downstream:

    POST /webhooks/ingest          server; continues the sender's `traceparent`
      send default                 producer; its context is stored with each event
        insert events              the write, which several requests may share
        queue default              each attempt: from due to claimed
        process default            each attempt: from claimed to settled
          slot                     waiting for the rate limit
          POST                     client; its context is the downstream's `traceparent`
          settle default           recording the outcome

Names and attributes follow OpenTelemetry's semantic conventions for HTTP, messaging and
databases; `wds.*` is our own. The downstream's URL is not recorded: it may contain a secret.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

import structlog
from aiohttp import web
from msgspec.structs import replace
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from wds import __version__
from wds.domain.attempt_results import BrokenAnswer, TimedOut, Unreachable, error_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from aiohttp.typedefs import Handler
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

    from wds.domain.attempt_results import AttemptResult
    from wds.domain.deliveries import Claim
    from wds.domain.events import NewEvent

STOP_S = 0.5
"""Longest time for the last export; stopping in time matters more."""
TRACED = "/webhooks/"
"""Prefix of the routes that are recorded; scrapes and health checks are not."""
MAX_TEXT = 256
"""Longest text of a sender or a downstream that becomes an attribute, in characters."""
MAX_TRACESTATE = 512
"""Longest `tracestate` that is kept, in characters: the standard demands that much."""

log = structlog.get_logger(__name__)

_propagator = TraceContextTextMapPropagator()


class Recorder:
    """A `tracing.Tracer` that exports over OTLP/HTTP, configured by the `OTEL_*` variables."""

    stop_s = STOP_S

    def __init__(self, role: str) -> None:
        """Start the exporting thread; the service is called `wds-{role}` unless configured.

        Raises:
            ValueError: a variable cannot be used.
        """
        configured = OTELResourceDetector().detect().attributes
        resource = {"service.name": f"wds-{role}", "service.version": __version__, **configured}
        # No hook at exit, which would make the process wait for a collector that is down.
        self._provider = TracerProvider(resource=Resource.create(resource), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("wds", __version__)
        self.middlewares = (self._request,)

    async def stop(self) -> None:
        """See `tracing.Tracer`. The export runs in a thread that is abandoned after `STOP_S`."""
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def export() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=export, name="export the last traces", daemon=True).start()
        try:
            async with asyncio.timeout(STOP_S):
                await done.wait()
        except TimeoutError:
            log.warning("traces_lost", cause="the collector did not answer in time")

    # -- ingest ----------------------------------------------------------------------------

    @web.middleware
    async def _request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        route = "" if resource is None else resource.canonical
        if not route.startswith(TRACED):
            return await handler(request)
        with (
            self._tracer.start_as_current_span(
                f"{request.method} {route}",
                _propagator.extract(request.headers),
                SpanKind.SERVER,
                {
                    "http.request.method": request.method,
                    "http.route": route,
                    "url.path": _text(request.path),
                    "url.scheme": request.scheme,
                    "user_agent.original": _text(request.headers.get("User-Agent", "")),
                    "client.address": request.remote or "",
                },
                record_exception=False,
            ) as span,
            structlog.contextvars.bound_contextvars(**_facts(span)),
        ):
            answer = await handler(request)
            span.set_attribute("http.response.status_code", answer.status)
            if answer.status >= 500:  # noqa: PLR2004 - HTTP's
                _failed(span, str(answer.status))
            return answer

    @contextmanager
    def enqueuing(self, events: Sequence[NewEvent]) -> Iterator[Sequence[NewEvent]]:
        """See `tracing.Tracer`."""
        destination = events[0].destination
        about: dict[str, AttributeValue] = {
            **_messaging("send", destination),
            "messaging.batch.message_count": len(events),
        }
        if len(events) == 1:
            about = {
                **_messaging("send", destination),
                "messaging.message.id": events[0].id,
                "messaging.message.body.size": len(events[0].payload),
            }
        with self._tracer.start_as_current_span(
            f"send {destination}",
            kind=SpanKind.PRODUCER,
            attributes=about,
            record_exception=False,
        ) as span:
            headers = _headers(span)
            yield [replace(event, trace=headers) for event in events]

    @contextmanager
    def inserting(self, events: Sequence[NewEvent]) -> Iterator[None]:
        """See `tracing.Tracer`. Each request whose events are in the write gets a span."""
        began = time.time_ns()
        error = ""
        try:
            yield
        except BaseException as failure:
            error = type(failure).__name__
            raise
        finally:
            ended = time.time_ns()
            traces = {str(event.trace): event.trace for event in events}
            for headers in traces.values():
                span = self._tracer.start_span(
                    "insert events",
                    _context(headers),
                    SpanKind.CLIENT,
                    {
                        "db.system.name": "mongodb",
                        "db.operation.name": "insert",
                        "db.collection.name": "events",
                        "db.operation.batch.size": len(events),
                    },
                    start_time=began,
                )
                if error:
                    _failed(span, error)
                span.end(ended)

    # -- delivery --------------------------------------------------------------------------

    def delivery(self, claim: Claim, *, limited: bool) -> _DeliveryTrace:
        """See `tracing.Tracer`."""
        return _DeliveryTrace(self._tracer, claim, limited=limited)


class _DeliveryTrace:
    """A `tracing.DeliveryTrace`: a span for each step of the claim."""

    def __init__(self, tracer: Tracer, claim: Claim, *, limited: bool) -> None:
        self._tracer = tracer
        self._claim = claim
        self._limited = limited
        self._claimed_at = time.time_ns() - _nanoseconds(time.monotonic() - claim.held_since)
        stored = _context(claim.trace)
        about: dict[str, AttributeValue] = {
            "messaging.message.id": claim.id,
            "wds.attempt": claim.attempt_number,
        }
        self._process = tracer.start_span(
            f"process {claim.destination}",
            stored,
            SpanKind.CONSUMER,
            {
                **_messaging("process", claim.destination),
                **about,
                "messaging.message.body.size": len(claim.payload),
                "wds.event_type": claim.event_type or "",
                "wds.lease_recovered": claim.recovered,
            },
            start_time=self._claimed_at,
        )
        self._inside = trace.set_span_in_context(self._process)
        # Measured by the database's clock, and placed by this machine's, like the other spans.
        tracer.start_span(
            f"queue {claim.destination}",
            stored if claim.trace else self._inside,
            attributes=about,
            start_time=self._claimed_at - _nanoseconds(claim.waited_s),
        ).end(self._claimed_at)
        self._post: Span | None = None
        self._settle: Span | None = None
        self.facts: Mapping[str, str] = _facts(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for span in (self._post, self._settle, self._process):
            if span is not None and span.is_recording():
                if kind is not None:
                    _failed(span, kind.__name__)
                span.end()

    def sent(self) -> Mapping[str, str]:
        """See `tracing.DeliveryTrace`."""
        now = time.time_ns()
        if self._limited:
            self._tracer.start_span("slot", self._inside, start_time=self._claimed_at).end(now)
        self._post = self._request(now)
        return _headers(self._post)

    def _request(self, began: int) -> Span:
        about: dict[str, AttributeValue] = {"http.request.method": "POST"}
        if self._claim.attempt_number > 1:
            about["http.request.resend_count"] = self._claim.attempt_number - 1
        return self._tracer.start_span(
            "POST", self._inside, SpanKind.CLIENT, about, start_time=began
        )

    def answered(self, result: AttemptResult) -> None:
        """See `tracing.DeliveryTrace`. If `sent` was not called, there was no connection."""
        span = self._post or self._request(self._claimed_at)
        if result.status_code is not None:
            span.set_attribute("http.response.status_code", result.status_code)
        error = error_text(result)
        if error is not None:
            for each in (span, self._process):
                _failed(each, _error_type(result), error)
        span.end()
        self._settle = self._tracer.start_span(
            f"settle {self._claim.destination}",
            self._inside,
            SpanKind.CLIENT,
            {
                **_messaging("settle", self._claim.destination),
                "messaging.message.id": self._claim.id,
            },
        )

    def settled(self, status: str | None) -> None:
        """See `tracing.DeliveryTrace`."""
        if self._settle is None:
            return
        if status is None:
            for span in (self._settle, self._process):
                _failed(span, "not_recorded", "the outcome could not be recorded under the lease")
        else:
            self._process.set_attribute("wds.status", str(status))
        self._settle.end()


def _messaging(operation: str, destination: str) -> dict[str, AttributeValue]:
    return {
        "messaging.system": "wds",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": destination,
    }


def _headers(span: Span) -> dict[str, str]:
    """Return the span's context as headers: `traceparent`, and `tracestate` unless too long."""
    headers: dict[str, str] = {}
    _propagator.inject(headers, trace.set_span_in_context(span))
    if len(headers.get("tracestate", "")) > MAX_TRACESTATE:
        del headers["tracestate"]
    return headers


def _context(headers: Mapping[str, str] | None) -> Context:
    """Return the context that `headers` contain; an empty one if they contain none."""
    return _propagator.extract(headers or {}, Context())


def _facts(span: Span) -> dict[str, str]:
    return {"trace_id": trace.format_trace_id(span.get_span_context().trace_id)}


def _failed(span: Span, error_type: str, text: str = "") -> None:
    span.set_attribute("error.type", error_type)
    span.set_status(StatusCode.ERROR, _text(text) or None)


def _error_type(result: AttemptResult) -> str:
    """Return a short name for a failure: the status, `timeout` or the exception's class."""
    match result:
        case TimedOut():
            return "timeout"
        case Unreachable() | BrokenAnswer():
            return result.cause
        case _:
            return str(result.status_code)


def _text(text: str) -> str:
    """Cut foreign text, and replace lone surrogates, which protobuf cannot encode."""
    return text[:MAX_TEXT].encode("utf-8", "replace").decode()


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000_000)
