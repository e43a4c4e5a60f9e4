"""Reads request bodies: none too long, none too slow, all together within a budget of bytes.

Memory is counted as it arrives, not as it is promised, so whoever holds some of the budget has
sent it. When the budget is full, the body that has been arriving the longest is given up: a
well-behaved sender's takes milliseconds, so it is the slow who make room.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from wds.domain.errors import QueueFullError, Refusal
from wds.telemetry import metrics

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware

SLOWEST_BYTES_PER_S = 64 * 1024
"""A body that is still arriving after its timeout must have come at least at this rate."""
OVERHEAD_BYTES = 4096
"""What a request costs beside its body, so that many tiny ones are bounded too."""


@dataclass(eq=False)
class _Reading:
    """One body: what it holds of the budget, and how to give it up while it is arriving."""

    deadline: asyncio.Timeout | None = None
    held: int = 0
    given_up: bool = False


class Intake:
    """The budget that the requests of one service share."""

    def __init__(self, *, max_body: int, budget: int, timeout_s: float) -> None:
        """Bound one body and all of them together, in bytes, and how long one may take."""
        self._max_body = max_body
        self._budget = budget
        self._timeout_s = timeout_s
        self._held = 0
        self._arriving: dict[_Reading, None] = {}  # in the order in which they began
        metrics.BODY_BYTES.set_function(lambda: self._held)

    @property
    def middleware(self) -> Middleware:
        """Return a middleware by which every handler's `request.read()` is this one."""

        @web.middleware
        async def reading_first(request: web.Request, handler: Handler) -> web.StreamResponse:
            if not request.body_exists or request.match_info.http_exception is not None:
                return await handler(request)
            reading = _Reading()
            try:
                # What `request.read()` would keep there.
                request._read_bytes = await self._body(request, reading)  # noqa: SLF001
                return await handler(request)
            finally:
                # The connection keeps the request until its next one comes, if one does.
                request._read_bytes = b""  # noqa: SLF001
                self._give_back(reading)

        return reading_first

    async def _body(self, request: web.Request, reading: _Reading) -> bytes:
        """Return the body; it counts against the budget until it is given back.

        Raises:
            Refusal: 413 for a body that is too long, 408 for one that is too slow.
            QueueFullError: the budget is full, and this is the one to go.
        """
        if (request.content_length or 0) > self._max_body:
            raise self._too_large()
        self._take(reading, OVERHEAD_BYTES)
        self._arriving[reading] = None
        try:
            return await self._read(request, reading)
        finally:
            self._arriving.pop(reading, None)

    async def _read(self, request: web.Request, reading: _Reading) -> bytes:
        if request.content.is_eof():  # most bodies have come with their headers
            body = request.content.read_nowait()
            if len(body) > self._max_body:
                raise self._too_large()
            self._take(reading, len(body))
            return body
        began = asyncio.get_running_loop().time()
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(None) as deadline:
                reading.deadline = deadline
                while not reading.given_up:
                    allowed_s = self._timeout_s + size / SLOWEST_BYTES_PER_S
                    deadline.reschedule(began + allowed_s)
                    chunk = await request.content.readany()
                    if not chunk:
                        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
                    size += len(chunk)
                    if size > self._max_body:
                        raise self._too_large()
                    self._take(reading, len(chunk))
                    chunks.append(chunk)
        except TimeoutError:
            if not reading.given_up:
                raise Refusal(408, "body_too_slow", "the body did not arrive in time") from None
        raise QueueFullError

    def _take(self, reading: _Reading, size: int) -> None:
        while self._held + size > self._budget:
            oldest = next(iter(self._arriving), reading)
            if oldest is reading:
                raise QueueFullError
            self._give_up(oldest)
        self._hold(reading, size)

    def _give_up(self, reading: _Reading) -> None:
        """Take a body's memory for others; its own task learns of it as soon as it runs."""
        reading.given_up = True
        del self._arriving[reading]
        self._give_back(reading)
        if reading.deadline is not None and not reading.deadline.expired():
            reading.deadline.reschedule(asyncio.get_running_loop().time())

    def _give_back(self, reading: _Reading) -> None:
        self._hold(reading, -reading.held)

    def _hold(self, reading: _Reading, size: int) -> None:
        reading.held += size
        self._held += size

    def _too_large(self) -> Refusal:
        return Refusal(413, "body_too_large", f"the body is larger than {self._max_body} bytes")
