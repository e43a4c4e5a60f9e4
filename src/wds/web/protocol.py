"""One client's connection: what is refused before there is a request to route.

aiohttp waits for the end of a request's headers for as long as the client likes, and answers what
is no HTTP in plain text with a traceback in the log. Here headers have a few seconds, and every
refusal has the envelope's shape and one line in the log, without a byte of what was sent. Nor does
a client who takes none of its answer keep a connection for ever.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from wds.domain.errors import Refusal
from wds.web.error_envelope import of_http, refused

if TYPE_CHECKING:
    from aiohttp.web_protocol import RequestHandler

log = structlog.get_logger(__name__)

KEEPALIVE_S = 75.0
"""How long a connection may be idle: longer than the 60 s of the usual load balancers."""
HEADERS_S = 4.0
"""How long a request's headers may take, from their first byte."""
LINGER_S = 2.0
"""How long what follows a refusal is read and dropped, so that the answer is not lost."""
ANSWER_S = 60.0
"""How long a client may take nothing of an answer that is larger than the buffers between."""
READ_BYTES = 64 * 1024
"""Of a body that nobody reads yet: past twice this, no more is taken from the network."""
MAX_QUEUED = 2
"""Requests that may wait behind one that is being answered, before no more are taken."""


_VERSIONS = {HttpVersion10, HttpVersion11}


class Connection(web.RequestHandler):
    """aiohttp's connection with the rules above. The parser also takes HTTP/0.9 and HTTP/2.0."""

    __slots__ = ("_answer_due", "_headers_due")

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - aiohttp's own
        """Take aiohttp's own arguments."""
        super().__init__(*arguments, **options)
        # The parser holds back whole requests by a count of its own, which may be one ahead. Only
        # a connection that paused too asks it for the rest, so this one must pause the earlier.
        self._max_msg_queue_size = MAX_QUEUED
        self._msg_queue_resume_size = MAX_QUEUED - 1
        self._headers_due: asyncio.TimerHandle | None = None
        self._answer_due: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and the clock of a request whose headers are not whole."""
        super().data_received(data)
        self._refuse_versions()
        if not data:
            return
        if self._messages or self._current_request is not None or self._waiter is None:
            self._stop_clock()
        elif self._headers_due is None:
            loop = asyncio.get_running_loop()
            self._headers_due = loop.call_later(HEADERS_S, self._headers_late)

    def pause_writing(self) -> None:
        """Wait for the client to take what was written, though not for ever."""
        super().pause_writing()
        if self.transport is not None:
            self._await_taking(self.transport)

    def resume_writing(self) -> None:
        """Forget how long the client took."""
        self._stop_waiting()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the clocks."""
        self._stop_clock()
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Refuse what the parser could not read."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        refusal = Refusal(400, "malformed_http", "this is not HTTP/1.1 as RFC 9112 has it")
        if isinstance(exc, LineTooLong):
            refusal = Refusal(431, "headers_too_large", "a line or header is too long")
        answer = refused(refusal, route="none", remote=request.remote)
        answer.force_close()
        return answer

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Give aiohttp's own refusals, made before any middleware ran, the envelope's shape."""
        if isinstance(resp, web.HTTPException) and resp.status >= HTTPStatus.BAD_REQUEST:
            resp = refused(of_http(resp), route="none", remote=request.remote)
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._refuse_versions()  # what came behind an upgrade is read only now

    def _refuse_versions(self) -> None:
        for number, (message, _) in enumerate(self._messages):
            if getattr(message, "version", HttpVersion11) not in _VERSIONS:
                wrong = _ErrInfo(status=400, exc=BadHttpMessage("version"), message="")
                self._messages[number] = (wrong, EMPTY_PAYLOAD)

    def _headers_late(self) -> None:
        self._headers_due = None
        if self.transport is None or self.transport.is_closing():
            return
        peer = self.transport.get_extra_info("peername")
        remote = str(peer[0]) if isinstance(peer, tuple) else None
        refusal = Refusal(408, "headers_too_slow", "the headers did not arrive in time")
        answer = refused(refusal, route="none", remote=remote)
        body = (answer.text or "").encode()
        # There is no request yet that aiohttp could answer.
        head = (
            "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.force_close()

    def _await_taking(self, transport: asyncio.Transport) -> None:
        left = transport.get_write_buffer_size()
        loop = asyncio.get_running_loop()
        self._answer_due = loop.call_later(ANSWER_S, self._look_again, transport, left)

    def _look_again(self, transport: asyncio.Transport, left: int) -> None:
        self._answer_due = None
        if transport.get_write_buffer_size() < left:
            self._await_taking(transport)
            return
        peer = transport.get_extra_info("peername")
        log.info("answer_untaken", remote=str(peer[0]) if isinstance(peer, tuple) else None)
        transport.abort()

    def _stop_waiting(self) -> None:
        if self._answer_due is not None:
            self._answer_due.cancel()
            self._answer_due = None

    def _stop_clock(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None


class _Server(web.Server):
    """Makes a `Connection` for each client."""

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Serves an application over `Connection`s. Bodies are handed over as sent, never expanded."""

    def __init__(self, app: web.Application, *, shutdown_s: float) -> None:
        """`shutdown_s` is how long requests under way may take at the end."""
        super().__init__(
            app,
            access_log=None,
            auto_decompress=False,
            shutdown_timeout=shutdown_s,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGER_S,
            read_bufsize=READ_BYTES,
        )

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,  # noqa: SLF001 - one server made from another of its own kind
            **made._kwargs,  # noqa: SLF001
        )
