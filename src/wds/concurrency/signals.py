"""Signals: a way for tests to wait until a loop has done something, without sleeping."""

from __future__ import annotations

import asyncio


class Signal:
    """Counts how often something has happened. `fire` is cheap while nobody waits."""

    __slots__ = ("_changed", "count")

    def __init__(self) -> None:
        """Start at 0."""
        self.count = 0
        self._changed: asyncio.Event | None = None

    def fire(self) -> None:
        """Count one more occurrence and wake every waiter."""
        self.count += 1
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def wait(self, times: int = 1) -> None:
        """Return once `fire` has been called `times` more times."""
        target = self.count + times
        while self.count < target:
            if self._changed is None:
                self._changed = asyncio.Event()
            await self._changed.wait()
