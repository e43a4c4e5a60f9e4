"""Writes accepted events to the store; concurrent requests share a write.

A request's event joins the next insert. A request's batch is one transaction of its own: batches
wait for each other and are never joined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

from prometheus_async import aio

from wds.concurrency.group_commit import GroupCommit
from wds.domain.events import Conflict, NewEvent, Receipt
from wds.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wds.telemetry.tracing import Tracer

MAX_BATCH_BYTES = 8 * 1024 * 1024
"""Bytes of events in one insert."""
MAX_PENDING_BYTES = 64 * 1024 * 1024
"""Bytes of events that may wait for an insert; beyond it senders get 503 at once."""
MAX_INSERTS_IN_FLIGHT = 2
"""MongoDB works on one insert while the events of the next are read and parsed."""
MIN_PARALLEL_EVENTS = 8
"""Events that justify a second insert in flight; fewer wait for the first to end."""
MAX_WAIT_S = 2.0
"""Once one write takes longer than this, senders get 503 instead of waiting for the next."""
_EVENT_OVERHEAD_BYTES = 512

Result: TypeAlias = Receipt | Conflict


class Writer(Protocol):
    """Stores events: `storage.event_writer.EventWriter`, which documents the errors."""

    async def insert(self, events: Sequence[NewEvent]) -> list[Result]:
        """Store `events`, majority-committed and journaled; return one result each, in order."""

    async def insert_all(self, events: Sequence[NewEvent]) -> list[Result]:
        """Store all of `events`, or none if one of them is a `Conflict`."""


class GroupWriter:
    """Group commits in front of a writer.

    Attributes:
        singles: for one event at a time.
        batches: for the batch of one request at a time.
    """

    def __init__(self, writer: Writer, tracer: Tracer) -> None:
        """`tracer` records each write in the traces of its events."""
        self._writer = writer
        self._tracer = tracer
        self.singles: GroupCommit[NewEvent, Result] = GroupCommit(
            self._insert,
            weigh=_weight,
            max_batch=MAX_BATCH_BYTES,
            max_pending=MAX_PENDING_BYTES,
            max_wait_s=MAX_WAIT_S,
            max_in_flight=MAX_INSERTS_IN_FLIGHT,
            min_parallel_batch=MIN_PARALLEL_EVENTS,
        )
        self.batches: GroupCommit[tuple[NewEvent, ...], list[Result]] = GroupCommit(
            self._insert_batches,
            weigh=lambda events: sum(map(_weight, events)),
            max_batch=1,
            max_pending=MAX_PENDING_BYTES,
            max_wait_s=MAX_WAIT_S,
        )

    async def drain(self) -> None:
        """Return once every submitted event is stored or its write has failed."""
        await self.singles.drain()
        await self.batches.drain()

    async def _insert(self, events: Sequence[NewEvent]) -> list[Result]:
        metrics.COMMIT_EVENTS.observe(len(events))
        with self._tracer.inserting(events):
            return await aio.time(metrics.COMMIT_SECONDS, self._writer.insert(events))

    async def _insert_batches(self, batches: Sequence[tuple[NewEvent, ...]]) -> list[list[Result]]:
        results = []
        for events in batches:
            with self._tracer.inserting(events):
                results.append(
                    await aio.time(metrics.COMMIT_SECONDS, self._writer.insert_all(events))
                )
        return results


def _weight(event: NewEvent) -> int:
    return len(event.payload) + _EVENT_OVERHEAD_BYTES
