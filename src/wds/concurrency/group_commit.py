"""Group commit: everything that is submitted while a write is in flight forms the next batch.

One slow acknowledged write then carries many items, so throughput does not depend on the latency
of a majority commit, and a lone item does not wait. If several batches may be in flight, they are
kept equal in size: with most items in one batch, their submitters would all wait at the same time
and nothing would fill the next. There is no timer, and no task while idle.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from wds.domain.errors import QueueFullError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

SLOW_COMMIT_S = 0.05
"""Once a commit has run longer than this, a smaller batch may start beside it: the commit is stuck,
or slow enough that a second one saves time."""

Item = TypeVar("Item")
Result = TypeVar("Result")
_Pending: TypeAlias = "tuple[Item, int, asyncio.Future[Result]]"
"""An item, its weight, and the future that its submitter awaits."""


@dataclass(eq=False, slots=True)
class _Batch:
    """The batch that one task has in flight; the task commits one after another.

    Attributes:
        started_at: `time.monotonic()` when its commit began; infinite between two commits.
        items: how many items it has; 0 between two commits.
    """

    started_at: float = math.inf
    items: int = 0
    task: asyncio.Task[None] | None = None


class GroupCommit(Generic[Item, Result]):
    """Turns single submissions into batches, by default one batch in flight at a time.

    `commit` receives the items in the order of submission and returns one result for each, in
    the same order. An exception that it raises reaches every submitter of that batch and no other.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        weigh: Callable[[Item], int] = lambda _: 1,
        max_batch: int,
        max_pending: int,
        max_wait_s: float = math.inf,
        max_in_flight: int = 1,
        min_parallel_batch: int = 1,
    ) -> None:
        """Bound one batch (`max_batch`) and all pending items (`max_pending`) by weight.

        While a commit has been running for longer than `max_wait_s`, submissions are refused:
        they would only wait.

        Up to `max_in_flight` batches are committed at a time. A further batch starts while others
        are in flight if (a) `min_parallel_batch` items are pending and (b) at least as many are
        pending as in flight, or a commit has run longer than `SLOW_COMMIT_S`. It takes at most
        an equal share: the items pending and in flight, divided by `max_in_flight`. A full batch
        starts as soon as fewer than `max_in_flight` are in flight.
        """
        self._commit = commit
        self._weigh = weigh
        self._max_batch = max_batch
        self._max_pending = max_pending
        self._max_wait_s = max_wait_s
        self._max_in_flight = max_in_flight
        self._min_parallel_batch = min_parallel_batch
        self._batches: set[_Batch] = set()
        self._starting = False
        self._pending: deque[_Pending[Item, Result]] = deque()
        self._pending_weight = 0

    async def submit(self, *items: Item) -> list[Result]:
        """Commit `items` and return their results, in order.

        Raises:
            QueueFullError: there is no room for all of them; none was taken.
            Exception: the exception of `commit` for a batch with one of them.
        """
        self.check()
        weights = list(map(self._weigh, items))
        weight = sum(weights)
        if self._pending and self._pending_weight + weight > self._max_pending:
            raise QueueFullError
        create_future = asyncio.get_running_loop().create_future
        futures: list[asyncio.Future[Result]] = [create_future() for _ in items]
        self._pending.extend(zip(items, weights, futures, strict=True))
        self._pending_weight += weight
        if futures and not self._starting and self._may_start(len(self._batches)):
            self._start_batch()
        if len(futures) == 1:
            return [await futures[0]]
        results = await asyncio.gather(*futures, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if not isinstance(result, BaseException)]

    def check(self) -> None:
        """Return if items may be submitted now.

        Raises:
            QueueFullError: a commit has been running for longer than `max_wait_s`.
        """
        if self._runs_longer_than(self._max_wait_s):
            raise QueueFullError

    async def drain(self) -> None:
        """Return once everything that was submitted has been committed or has failed."""
        while self._batches:
            await asyncio.wait({batch.task for batch in self._batches if batch.task})

    def _may_start(self, others: int) -> bool:
        """Whether a batch of pending items should start while `others` are in flight."""
        if not others:
            return bool(self._pending)
        if others >= self._max_in_flight:
            return False
        if self._pending_weight >= self._max_batch:
            return True
        pending = len(self._pending)
        return pending >= self._min_parallel_batch and (
            pending >= self._items_in_flight() or self._runs_longer_than(SLOW_COMMIT_S)
        )

    def _items_in_flight(self) -> int:
        return sum(batch.items for batch in self._batches)

    def _runs_longer_than(self, seconds: float) -> bool:
        """Whether any commit has been running for longer than `seconds`."""
        latest = time.monotonic() - seconds
        return any(batch.started_at < latest for batch in self._batches)

    def _start_batch(self) -> None:
        # In an empty context: what the commit logs concerns no single submitter.
        context = Context()
        batch = _Batch()
        batch.task = asyncio.create_task(self._run_batches(batch), context=context)
        batch.task.add_done_callback(
            lambda _: self._on_cancelled_before_start(batch), context=context
        )
        self._batches.add(batch)
        self._starting = True

    async def _run_batches(self, batch: _Batch) -> None:
        """Commit one batch after another for as long as one may start."""
        self._starting = False
        entries: list[_Pending[Item, Result]] = []
        try:
            while self._may_start(len(self._batches) - 1):
                entries = self._take_pending()
                futures = [future for _, _, future in entries]
                batch.started_at, batch.items = time.monotonic(), len(entries)
                try:
                    results = await self._commit([item for item, _, _ in entries])
                    for future, result in zip(futures, results, strict=True):
                        if not future.done():
                            future.set_result(result)
                except Exception as error:  # noqa: BLE001 - passed on to every submitter
                    _fail(futures, error)
                batch.started_at, batch.items = math.inf, 0
        finally:
            self._finish(batch, entries)

    def _on_cancelled_before_start(self, batch: _Batch) -> None:
        """Clean up for `_run_batches` if its task was cancelled before its first step."""
        if batch in self._batches:
            self._starting = False
            self._finish(batch, [])

    def _finish(self, batch: _Batch, entries: Sequence[_Pending[Item, Result]]) -> None:
        self._batches.remove(batch)
        # Futures are left only if the task was cancelled; then no submitter may wait for ever.
        left = [*entries] if self._batches else [*entries, *self._pending]
        _fail([future for _, _, future in left], asyncio.CancelledError())
        if not self._batches:
            self._pending.clear()
            self._pending_weight = 0

    def _take_pending(self) -> list[_Pending[Item, Result]]:
        """Remove the items of the next batch from the queue, at least one."""
        share = len(self._pending)
        if in_flight := self._items_in_flight():
            share = max(
                self._min_parallel_batch, math.ceil((in_flight + share) / self._max_in_flight)
            )
        entries = [self._pending.popleft()]
        weight = entries[0][1]
        while (
            self._pending
            and len(entries) < share
            and weight + self._pending[0][1] <= self._max_batch
        ):
            entries.append(self._pending.popleft())
            weight += entries[-1][1]
        self._pending_weight -= weight
        return entries


def _fail(futures: Sequence[asyncio.Future[Result]], error: BaseException) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
