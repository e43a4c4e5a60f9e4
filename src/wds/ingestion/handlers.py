"""The handlers of the ingest routes: verify, parse, store, answer.

A 2xx is sent only after the store has confirmed that the event is majority-committed and
journaled. Every other answer is a refusal in the error envelope, after which sending again is
safe: with an idempotency key it stores nothing twice.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from aiohttp import web
from prometheus_async import aio

from wds.domain.errors import Detail, Refusal
from wds.domain.events import Conflict, Receipt
from wds.ingestion import event_parser, payload
from wds.ingestion.event_parser import VerifiedRequest
from wds.ingestion.sources import DEFAULT_SOURCE
from wds.telemetry import event_log, metrics
from wds.web.error_envelope import json_answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wds.ingestion.group_writer import GroupWriter
    from wds.ingestion.sources import Source
    from wds.signing.scheme import Answer
    from wds.telemetry.tracing import Tracer


class IngestHandlers:
    """Handlers for the sources of one service; concurrent requests share its writes.

    The docstrings of the handlers are the descriptions of their routes in the OpenAPI document.
    """

    def __init__(self, sources: Mapping[str, Source], writer: GroupWriter, tracer: Tracer) -> None:
        """`sources` are by name and include `default`."""
        self._sources = sources
        self._verified_by_secret = {
            source.name: [
                metrics.SIGNATURES_VERIFIED.labels(source.name, str(number))
                for number, _ in enumerate(source.keys, 1)
            ]
            for source in sources.values()
        }
        self._writer = writer
        self._tracer = tracer

    @aio.time(metrics.INGEST_SECONDS)
    async def event(self, request: web.Request) -> web.Response:
        """Store one event: 202, or 200 for a repeat of an idempotency key.

        The body is kept byte for byte. The event's type is the payload's `event_type`, else
        its `type`, else the header `X-Event-Type`, else `X-GitHub-Event`. Sign the raw body with
        HMAC-SHA256.
        """
        return await self._store_event(request, self._sources[DEFAULT_SOURCE])

    @aio.time(metrics.INGEST_SECONDS)
    async def source_event(self, request: web.Request) -> web.Response:
        """Store one event of a configured source: 202, or 200 for a repeat.

        Signature, event type and idempotency key are read where the provider puts them. Slack's
        `url_verification` is answered with the challenge and is not stored. A form from Slack is
        answered 200 without a body, so that Slack shows its user nothing.
        """
        source = self._sources.get(request.match_info["source"])
        if source is None:
            raise Refusal(404, "unknown_source", "no source has this name")
        return await self._store_event(request, source)

    @aio.time(metrics.INGEST_SECONDS)
    async def batch(self, request: web.Request) -> web.Response:
        """Store 1 to 1,000 events, all or none.

        They are stored in one transaction, after every event was checked. An `Idempotency-Key`
        header makes the whole batch repeatable: event number n gets the key with `/n` appended,
        unless it has one of its own. Sign the raw body, as for one event.
        """
        events = event_parser.parse_batch(
            await self._verified(request, self._sources[DEFAULT_SOURCE])
        )
        if conflicts := event_parser.conflicting_indexes(events):
            raise _conflict(*map(_batch_conflict, conflicts))
        with self._tracer.enqueuing(events) as traced, event_log.unless_acknowledged(events):
            [results] = await self._writer.batches.submit(tuple(traced))
        if conflicts := [n for n, each in enumerate(results) if isinstance(each, Conflict)]:
            raise _conflict(*map(_batch_conflict, conflicts))
        receipts = [each for each in results if isinstance(each, Receipt)]
        event_log.acknowledged(events, receipts)
        duplicates = sum(receipt.duplicate for receipt in receipts)
        return json_answer(
            {
                "accepted": len(receipts) - duplicates,
                "duplicates": duplicates,
                "events": [_receipt_json(receipt) for receipt in receipts],
            },
            202,
        )

    async def _store_event(self, request: web.Request, source: Source) -> web.Response:
        verified = await self._verified(request, source)
        is_form = payload.is_form(verified.content_type)
        read = payload.read_form_fields if is_form else payload.read_fields
        fields = read(verified.body, source.body_fields)
        answer = source.scheme.handshake(fields)
        if answer is not None:
            return _respond(answer)
        event = event_parser.parse_event(verified, fields)
        # The values can take twenty times the memory of the body, and only the body is budgeted.
        del fields
        with self._tracer.enqueuing([event]) as [traced], event_log.unless_acknowledged([event]):
            [result] = await self._writer.singles.submit(traced)
        if isinstance(result, Conflict):
            if not source.signs_idempotency_key:
                raise _conflict(
                    Detail("idempotency_key", f"belongs to event {result.id}"), event_id=result.id
                )
            result = Receipt(result.id, result.status, duplicate=True)
        event_log.acknowledged([event], [result])
        if is_form and source.scheme.answer_to_form is not None:
            return _respond(source.scheme.answer_to_form)
        return json_answer(_receipt_json(result), 200 if result.duplicate else 202)

    async def _verified(self, request: web.Request, source: Source) -> VerifiedRequest:
        """Read the body and check that the source signed it.

        Raises:
            Refusal: 400, 401 and 415; see `scheme.verify` and `event_parser.check_content_type`.
        """
        body = await request.read()
        proof = source.verify(request.headers, body, time.time())
        self._verified_by_secret[source.name][proof.secret_index].inc()
        forms = source.scheme.accepts_forms
        content_type = event_parser.check_content_type(request, forms=forms)
        return VerifiedRequest(request, source, proof, body, content_type)


def _respond(answer: Answer) -> web.Response:
    if answer.body is None:
        return web.Response(status=answer.status)
    return json_answer(answer.body, answer.status)


def _batch_conflict(index: int) -> Detail:
    return Detail(f"events.{index}.idempotency_key", "belongs to another payload")


def _conflict(*details: Detail, event_id: str | None = None) -> Refusal:
    return Refusal(
        409,
        "idempotency_conflict",
        "the idempotency key belongs to another payload",
        details,
        event_id=event_id,
    )


def _receipt_json(receipt: Receipt) -> dict[str, Any]:
    return {"id": receipt.id, "status": receipt.status, "duplicate": receipt.duplicate}
