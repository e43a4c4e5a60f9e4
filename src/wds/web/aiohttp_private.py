"""The only module that uses private names of aiohttp, and checks that they exist.

wds refuses bad HTTP, slow headers and surplus pipelined requests below the level of aiohttp's
public interface. Everything for that is here; `protocol` and `body_reader` use these functions
only. Private names may change in any minor release of aiohttp, so `pyproject.toml` allows one
minor release, and `check` fails at import if a name is gone.

To move to another release: change the range in `pyproject.toml`, run `tests/integration/web`, and
read the places in aiohttp that use the names in `PRIVATE_NAMES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import client_proto, web, web_protocol
from aiohttp.streams import EMPTY_PAYLOAD

from wds.domain.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.http_exceptions import HttpProcessingError

SUPPORTED = ">=3.14.5,<3.15"
"""The releases of aiohttp that these names were read in; the same range as in `pyproject.toml`."""

PRIVATE_NAMES: tuple[tuple[object, str], ...] = (
    (web_protocol, "_ErrInfo"),  # a request that the parser rejected, in the queue of requests
    (web.RequestHandler, "_messages"),  # the queue of requests behind the one being answered
    (web.RequestHandler, "_max_msg_queue_size"),  # its length at which reading pauses
    (web.RequestHandler, "_msg_queue_resume_size"),  # its length at which reading resumes
    (web.RequestHandler, "_current_request"),  # the request that a handler is answering
    (web.RequestHandler, "_waiter"),  # what the connection's task waits on for a request
    (web.BaseRequest, "_read_bytes"),  # the body, once `read()` has it
    (web.AppRunner, "_make_server"),  # makes the server that makes the connections
)
"""Every private name in this module that a class or module of aiohttp has."""
_SERVER_ATTRIBUTES = ("_loop", "_kwargs")
"""Those that only an instance of `web.Server` has: its event loop, its options of connections."""
UNDOCUMENTED_NAMES: tuple[tuple[object, str], ...] = (
    (aiohttp.BaseConnector, "connect"),  # a connection for a request
    (client_proto.ResponseHandler, "set_response_params"),  # how the answer is to be read
    (aiohttp.ClientRequest, "send"),  # writes a request to a connection
    (aiohttp.ClientResponse, "start"),  # reads the head of the answer
)
"""Public names that aiohttp does not document. `delivery.http_client` sends requests with them."""


def check() -> None:
    """Check that aiohttp still has every private or undocumented name that wds uses.

    Raises:
        StartError: one is missing. It says which, and which releases have it.
    """
    missing = [
        f"{getattr(owner, '__name__', owner)}.{name}"
        for owner, name in PRIVATE_NAMES + UNDOCUMENTED_NAMES
        if name not in vars(owner)
    ]
    assigned = web.Server.__init__.__code__.co_names
    missing += [f"Server.{name}" for name in _SERVER_ATTRIBUTES if name not in assigned]
    if missing:
        msg = (
            f"aiohttp {aiohttp.__version__} lacks {', '.join(missing)}, which wds needs;"
            f" install aiohttp{SUPPORTED}"
        )
        raise StartError(msg)


check()


def limit_queued_requests(connection: web.RequestHandler, max_queued: int) -> None:
    """Stop reading from `connection` while `max_queued` requests wait behind the current one."""
    connection._max_msg_queue_size = max_queued
    connection._msg_queue_resume_size = max_queued - 1


def is_between_requests(connection: web.RequestHandler) -> bool:
    """Tell whether `connection` has no whole request and waits for the headers of the next."""
    return not (
        connection._messages
        or connection._current_request is not None
        or connection._waiter is None
    )


def reject_queued_requests(
    connection: web.RequestHandler,
    is_rejected: Callable[[Any], bool],
    error: Callable[[], HttpProcessingError],
) -> None:
    """Replace queued requests by `error`, which `handle_error` then answers.

    `is_rejected` is called with each parsed request line and headers.
    """
    queue = connection._messages
    for index, (message, _) in enumerate(queue):
        if is_rejected(message):
            info = web_protocol._ErrInfo(status=400, exc=error(), message="")
            queue[index] = (info, EMPTY_PAYLOAD)


def set_body(request: web.Request, body: bytes) -> None:
    """Let `request.read()` return `body`."""
    request._read_bytes = body


class ConnectionRunner(web.AppRunner):
    """A runner whose server makes connections of the class `connection_class`."""

    connection_class: type[web.RequestHandler]

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _ConnectionServer(self.connection_class, server)


class _ConnectionServer(web.Server):
    """The same server as another, but for the class of its connections."""

    def __init__(self, connection_class: type[web.RequestHandler], other: web.Server) -> None:
        super().__init__(
            other.request_handler,
            request_factory=other.request_factory,
            handler_cancellation=other.handler_cancellation,
            loop=other._loop,
            **other._kwargs,
        )
        self._connection_class = connection_class

    def __call__(self) -> web.RequestHandler:
        return self._connection_class(self, loop=self._loop, **self._kwargs)
