"""Reads request bodies: each limited in size and time, all together within a budget of bytes.

Bytes count against the budget as they arrive, not as `Content-Length` announces them: a sender
cannot occupy memory that it has not sent. When the budget is full, the body that has been
arriving for longest is dropped. A well-behaved sender's body takes milliseconds, so this drops
the slow ones.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from wds.domain.errors import QueueFullError, Refusal
from wds.telemetry import metrics
from wds.web import aiohttp_private

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware

SLOWEST_BYTES_PER_S = 64 * 1024
"""A body may exceed its timeout while it arrives at least at this rate."""
OVERHEAD_BYTES = 4096
"""Charged for every request in addition to its body. It also bounds the number of tiny bodies."""


@dataclass(eq=False)
class _Reading:
    """One body: its share of the budget, and how to drop it while it is arriving."""

    deadline: asyncio.Timeout | None = None
    held: int = 0
    dropped: bool = False


class BodyReader:
    """Reads the bodies of one service, whose requests share a budget."""

    def __init__(self, *, max_body: int, budget: int, timeout_s: float) -> None:
        """`max_body` and `budget` are in bytes: for one body, and for all at once."""
        self._max_body = max_body
        self._budget = budget
        self._timeout_s = timeout_s
        self._held = 0
        self._arriving: dict[_Reading, None] = {}  # in order of their first byte
        metrics.BODY_BYTES.set_function(lambda: self._held)

    @property
    def middleware(self) -> Middleware:
        """Return a middleware that reads the body before the handler runs.

        `request.read()` then returns it. The body counts against the budget until the handler is
        done.
        """

        @web.middleware
        async def read_body(request: web.Request, handler: Handler) -> web.StreamResponse:
            if not request.body_exists or request.match_info.http_exception is not None:
                return await handler(request)
            reading = _Reading()
            try:
                aiohttp_private.set_body(request, await self._body(request, reading))
                return await handler(request)
            finally:
                # The connection keeps the request until the next one, which may never come.
                aiohttp_private.set_body(request, b"")
                self._release(reading)

        return read_body

    async def _body(self, request: web.Request, reading: _Reading) -> bytes:
        """Return the body.

        Raises:
            Refusal: 413 for a body that is too long, 408 for one that is too slow.
            QueueFullError: the budget is full, and this body is the one to drop.
        """
        if (request.content_length or 0) > self._max_body:
            raise self._too_large()
        self._reserve(reading, OVERHEAD_BYTES)
        self._arriving[reading] = None
        try:
            return await self._read(request, reading)
        finally:
            self._arriving.pop(reading, None)

    async def _read(self, request: web.Request, reading: _Reading) -> bytes:
        if request.content.is_eof():  # most bodies arrive together with their headers
            body = request.content.read_nowait()
            if len(body) > self._max_body:
                raise self._too_large()
            self._reserve(reading, len(body))
            return body
        began = asyncio.get_running_loop().time()
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(None) as deadline:
                reading.deadline = deadline
                while not reading.dropped:
                    allowed_s = self._timeout_s + size / SLOWEST_BYTES_PER_S
                    deadline.reschedule(began + allowed_s)
                    chunk = await request.content.readany()
                    if not chunk:
                        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
                    size += len(chunk)
                    if size > self._max_body:
                        raise self._too_large()
                    self._reserve(reading, len(chunk))
                    chunks.append(chunk)
        except TimeoutError:
            if not reading.dropped:
                raise Refusal(408, "body_too_slow", "the body did not arrive in time") from None
        raise QueueFullError

    def _reserve(self, reading: _Reading, size: int) -> None:
        while self._held + size > self._budget:
            oldest = next(iter(self._arriving), reading)
            if oldest is reading:
                raise QueueFullError
            self._drop(oldest)
        self._hold(reading, size)

    def _drop(self, reading: _Reading) -> None:
        """Release a body's share for others. The task that reads it raises as soon as it runs."""
        reading.dropped = True
        del self._arriving[reading]
        self._release(reading)
        if reading.deadline is not None and not reading.deadline.expired():
            reading.deadline.reschedule(asyncio.get_running_loop().time())

    def _release(self, reading: _Reading) -> None:
        self._hold(reading, -reading.held)

    def _hold(self, reading: _Reading, size: int) -> None:
        reading.held += size
        self._held += size

    def _too_large(self) -> Refusal:
        return Refusal(413, "body_too_large", f"the body is larger than {self._max_body} bytes")
