"""Group commit: whatever arrives while a write is in flight goes out as the next one.

One slow acknowledged write then carries many items, so throughput does not depend on the
latency of a majority commit, and a lone item waits for nothing. Where writes may overlap, they are
kept equal in size: were most items in one of them, nobody would have anything to do meanwhile.
There is no timer and no task while idle.
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

YOUNG_S = 0.05
"""Beside a commit that takes longer than this others do not wait to be as large: it is stuck, or
slow enough to work beside it all the same."""

Item = TypeVar("Item")
Result = TypeVar("Result")
_Waiting: TypeAlias = "tuple[Item, int, asyncio.Future[Result]]"
"""An item, its weight, and what its submitter waits for."""


@dataclass(eq=False, slots=True)
class _Flight:
    """Batches on their way one after another: when the present one left, and its items."""

    since: float = math.inf
    items: int = 0
    task: asyncio.Task[None] | None = None


class GroupCommit(Generic[Item, Result]):
    """Turns single submissions into batches, by default one batch in flight at a time.

    `commit` receives the items in the order of submission and returns one result for each, in
    the same order; an exception from it reaches every submitter of that batch, and no other.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        weigh: Callable[[Item], int] = lambda _: 1,
        max_batch: int,
        max_pending: int,
        max_wait_s: float = math.inf,
        overlap: int = 1,
        worth: int = 1,
    ) -> None:
        """Bound one batch and all waiting items, both by the sum of `weigh`.

        While one commit has been under way for longer than `max_wait_s`, nothing more is taken:
        what would only wait is better told so at once. Up to `overlap` batches are in flight. One
        begins beside others once at least `worth` items wait for it, and as many as are in flight
        unless these have been for `YOUNG_S`; it takes no more than an equal share of all. What
        would fill a batch waits for nothing but a place.
        """
        self._commit = commit
        self._max_wait_s = max_wait_s
        self._overlap = overlap
        self._worth = worth
        self._flights: set[_Flight] = set()
        self._boarding = False
        self._weigh = weigh
        self._max_batch = max_batch
        self._max_pending = max_pending
        self._pending: deque[_Waiting[Item, Result]] = deque()
        self._pending_weight = 0

    async def submit(self, *items: Item) -> list[Result]:
        """Commit `items` and return their results, in order.

        Raises:
            QueueFullError: there is no room for all of them; none was taken.
            Exception: whatever `commit` raised for a batch that held one of them.
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
        if futures and not self._boarding and self._takes_another(len(self._flights)):
            # In a context of its own: what it logs concerns no single submitter.
            context = Context()
            flight = _Flight()
            flight.task = asyncio.create_task(self._fly(flight), context=context)
            flight.task.add_done_callback(lambda _: self._stay(flight), context=context)
            self._flights.add(flight)
            self._boarding = True
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
            QueueFullError: the commit under way takes too long.
        """
        if self._late(self._max_wait_s):
            raise QueueFullError

    async def drain(self) -> None:
        """Return once everything that was submitted has been committed or has failed."""
        while self._flights:
            await asyncio.wait({flight.task for flight in self._flights if flight.task})

    def _takes_another(self, others: int) -> bool:
        """Tell whether what waits should go now, so many other batches being in flight."""
        if not others:
            return bool(self._pending)
        if others >= self._overlap:
            return False
        if self._pending_weight >= self._max_batch:
            return True
        waiting = len(self._pending)
        return waiting >= self._worth and (waiting >= self._in_flight() or self._late(YOUNG_S))

    def _in_flight(self) -> int:
        return sum(flight.items for flight in self._flights)

    def _late(self, seconds: float) -> bool:
        """Tell whether some commit has been under way for longer than that."""
        latest = time.monotonic() - seconds
        return any(flight.since < latest for flight in self._flights)

    async def _fly(self, flight: _Flight) -> None:
        """Commit one batch after another, as long as there is something to take."""
        self._boarding = False
        batch: list[_Waiting[Item, Result]] = []
        try:
            while self._takes_another(len(self._flights) - 1):
                batch = self._next_batch()
                futures = [future for _, _, future in batch]
                flight.since, flight.items = time.monotonic(), len(batch)
                try:
                    results = await self._commit([item for item, _, _ in batch])
                    for future, result in zip(futures, results, strict=True):
                        if not future.done():
                            future.set_result(result)
                except Exception as error:  # noqa: BLE001 - handed to everyone who waits for it
                    _settle(futures, error)
                flight.since, flight.items = math.inf, 0
        finally:
            self._land(flight, batch)

    def _stay(self, flight: _Flight) -> None:
        """End a flight whose task was cancelled before its first step."""
        if flight in self._flights:
            self._boarding = False
            self._land(flight, [])

    def _land(self, flight: _Flight, batch: Sequence[_Waiting[Item, Result]]) -> None:
        self._flights.remove(flight)
        # Something is left only if its task was cancelled; nobody may wait for ever.
        left = [*batch] if self._flights else [*batch, *self._pending]
        _settle([future for _, _, future in left], asyncio.CancelledError())
        if not self._flights:
            self._pending.clear()
            self._pending_weight = 0

    def _next_batch(self) -> list[_Waiting[Item, Result]]:
        most = len(self._pending)
        if in_flight := self._in_flight():
            most = max(self._worth, math.ceil((in_flight + most) / self._overlap))
        batch = [self._pending.popleft()]
        weight = batch[0][1]
        while (
            self._pending and len(batch) < most and weight + self._pending[0][1] <= self._max_batch
        ):
            batch.append(self._pending.popleft())
            weight += batch[-1][1]
        self._pending_weight -= weight
        return batch


def _settle(futures: Sequence[asyncio.Future[Result]], error: BaseException) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
