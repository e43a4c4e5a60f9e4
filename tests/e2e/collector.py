"""A collector of traces: takes OTLP over HTTP as OpenTelemetry's own does, and keeps the spans."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from wds.web.server import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ERROR = 2
"""Status code of a failed span in https://github.com/open-telemetry/opentelemetry-proto."""


@dataclass(frozen=True)
class Span:
    """One span as it was exported; instants in nanoseconds."""

    service: str
    name: str
    kind: str
    trace_id: str
    id: str
    parent_id: str
    began: int
    ended: int
    attributes: dict[str, Any]
    failed: bool
    message: str


@dataclass
class Collector:
    """The spans of all processes, in the order of their arrival."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    raw: bytes = b""

    def named(self, name: str) -> list[Span]:
        """Return the spans with this name in the order of their beginning."""
        return sorted((s for s in self.spans if s.name == name), key=lambda span: span.began)

    def below(self, parent: Span) -> list[str]:
        """Return the names of the spans directly below `parent`."""
        return sorted(span.name for span in self.spans if span.parent_id == parent.id)

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.raw += body
        for each in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = _attributes(each.resource.attributes)
            for scope in each.scope_spans:
                self.spans += [_span(resource["service.name"], span) for span in scope.spans]
        return web.Response(content_type="application/x-protobuf")


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def _span(service: str, span: Any) -> Span:
    return Span(
        service=service,
        name=span.name,
        kind=span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        trace_id=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        began=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        failed=span.status.code == ERROR,
        message=span.status.message,
    )


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """Run a `Collector` on a free port."""
    collector = Collector()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/v1/traces", collector.take)
    async with listening(app, "127.0.0.1", 0) as port:
        collector.url = f"http://127.0.0.1:{port}"
        yield collector
