"""One client's connection: limits and refusals that apply before there is a request to route.

aiohttp waits without limit for the end of a request's headers, answers malformed HTTP in plain
text, and logs a traceback for it. Here headers have `HEADERS_S`, and every refusal has the
envelope's shape and one log line, without a byte of the request. A client that does not read its
answer is disconnected after `ANSWER_S`.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError, LineTooLong

from wds.domain.errors import Refusal
from wds.web import aiohttp_private
from wds.web.error_envelope import answer_refusal, refusal_of_http

log = structlog.get_logger(__name__)

KEEPALIVE_S = 75.0
"""Seconds that a connection may be idle: longer than the 60 s of the usual load balancers."""
HEADERS_S = 4.0
"""Seconds that a request's headers may take, from their first byte."""
LINGER_S = 2.0
"""Seconds for which bytes after a refusal are read and dropped, so that the answer arrives."""
ANSWER_S = 60.0
"""Seconds that a client may read nothing of an answer that is larger than the socket buffers."""
READ_BYTES = 64 * 1024
"""Bytes of an unread body; past twice this, reading from the network pauses."""
MAX_QUEUED = 2
"""Requests that may wait behind the one being answered before reading pauses."""

_VERSIONS = {HttpVersion10, HttpVersion11}


class Connection(web.RequestHandler):
    """aiohttp's connection with these limits. Its parser also accepts HTTP/0.9 and HTTP/2.0."""

    __slots__ = ("_answer_timer", "_headers_timer")

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - aiohttp's own
        """Pass everything on to aiohttp."""
        super().__init__(*arguments, **options)
        # The parser holds back whole requests by a count of its own, which may be one ahead. Only
        # a connection that has paused asks the parser for them, so this one must pause earlier.
        aiohttp_private.limit_queued_requests(self, MAX_QUEUED)
        self._headers_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Feed the parser; start or stop the timer of the headers."""
        super().data_received(data)
        self._reject_versions()
        if not data:
            return
        if not aiohttp_private.is_between_requests(self):
            self._stop_headers_timer()
        elif self._headers_timer is None:
            loop = asyncio.get_running_loop()
            self._headers_timer = loop.call_later(HEADERS_S, self._refuse_slow_headers)

    def pause_writing(self) -> None:
        """Wait, with a time limit, until the client reads the bytes that were written."""
        super().pause_writing()
        if self.transport is not None:
            self._start_answer_timer(self.transport)

    def resume_writing(self) -> None:
        """Stop the timer of the answer."""
        self._stop_answer_timer()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop both timers."""
        self._stop_headers_timer()
        self._stop_answer_timer()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a parser error in the envelope."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        refusal = Refusal(400, "malformed_http", "this is not HTTP/1.1 as RFC 9112 defines it")
        if isinstance(exc, LineTooLong):
            refusal = Refusal(431, "headers_too_large", "a line or header is too long")
        answer = answer_refusal(refusal, route="none", remote=request.remote)
        answer.force_close()
        return answer

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Put errors that aiohttp raised before any middleware ran into the envelope."""
        if isinstance(resp, web.HTTPException) and resp.status >= HTTPStatus.BAD_REQUEST:
            resp = answer_refusal(refusal_of_http(resp), route="none", remote=request.remote)
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._reject_versions()  # aiohttp parses what follows an upgrade only now

    def _reject_versions(self) -> None:
        aiohttp_private.reject_queued_requests(self, _has_other_version, _version_error)

    def _refuse_slow_headers(self) -> None:
        self._headers_timer = None
        if self.transport is None or self.transport.is_closing():
            return
        refusal = Refusal(408, "headers_too_slow", "the headers did not arrive in time")
        answer = answer_refusal(refusal, route="none", remote=_remote(self.transport))
        body = (answer.text or "").encode()
        # aiohttp can answer requests only, and there is none yet.
        head = (
            "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.force_close()

    def _start_answer_timer(self, transport: asyncio.Transport) -> None:
        unsent = transport.get_write_buffer_size()
        loop = asyncio.get_running_loop()
        self._answer_timer = loop.call_later(ANSWER_S, self._abort_if_stuck, transport, unsent)

    def _abort_if_stuck(self, transport: asyncio.Transport, unsent: int) -> None:
        self._answer_timer = None
        if transport.get_write_buffer_size() < unsent:
            self._start_answer_timer(transport)
            return
        log.info("answer_untaken", remote=_remote(transport))
        transport.abort()

    def _stop_answer_timer(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None

    def _stop_headers_timer(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None


def _has_other_version(message: object) -> bool:
    return getattr(message, "version", HttpVersion11) not in _VERSIONS


def _version_error() -> HttpProcessingError:
    return BadHttpMessage("version")


def _remote(transport: asyncio.Transport) -> str | None:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else None


class Runner(aiohttp_private.ConnectionRunner):
    """Serves an application over `Connection`s. Compressed bodies are never decompressed."""

    connection_class = Connection

    def __init__(self, app: web.Application, *, shutdown_s: float) -> None:
        """`shutdown_s` is how long running requests may take at the end."""
        super().__init__(
            app,
            access_log=None,
            auto_decompress=False,
            shutdown_timeout=shutdown_s,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGER_S,
            read_bufsize=READ_BYTES,
        )
