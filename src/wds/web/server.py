"""The parts that every HTTP process shares: an application with defaults, listening, start-up."""

from __future__ import annotations

import asyncio
import errno
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from wds.domain.errors import StartError
from wds.telemetry import metrics
from wds.web.error_envelope import envelope
from wds.web.protocol import Runner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from aiohttp.typedefs import Middleware

log = structlog.get_logger(__name__)

SHUTDOWN_TIMEOUT_S = 10.0
_MIB = 1024 * 1024


def new_app(
    max_body_bytes: int = _MIB,
    *,
    around: Sequence[Middleware] = (),
    inside: Sequence[Middleware] = (),
) -> web.Application:
    """Return an application that answers errors in the envelope and limits the size of bodies.

    The middlewares `around` see every response as it is sent, also those of the envelope. Errors
    of the middlewares `inside` are answered in the envelope too.
    """
    app = web.Application(middlewares=[*around, envelope, *inside], client_max_size=max_body_bytes)

    async def expose_internal_errors(app: web.Application) -> None:
        metrics.expose_internal_errors(resource.canonical for resource in app.router.resources())

    app.on_startup.append(expose_internal_errors)
    return app


@asynccontextmanager
async def listening(
    app: web.Application, host: str, port: int, *, shutdown_s: float = SHUTDOWN_TIMEOUT_S
) -> AsyncIterator[int]:
    """Serve `app` inside the block. Yields the bound port, which differs from `port` if that is 0.

    On exit it accepts no more connections and gives running requests `shutdown_s` to finish.
    Compressed bodies are passed on as they are, never decompressed.

    Raises:
        StartError: the address cannot be bound.
    """
    runner = Runner(app, shutdown_s=shutdown_s)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise StartError(_bind_error(host, port, error)) from error
        bound: int = runner.addresses[0][1]
        log.info("listening", host=host, port=bound)
        yield bound
    finally:
        await runner.cleanup()


def _bind_error(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; choose another or stop what listens there"
    return f"cannot listen on {host} port {port}: {error.strerror}"


async def wait_until_open(open_store: Callable[[], Awaitable[None]], stop: asyncio.Event) -> bool:
    """Wait until `open_store` returns; False if `stop` is set first.

    Raises:
        StartError: the server must not be used. Any other error of `open_store` is passed on too.
    """
    opening = asyncio.ensure_future(open_store())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
        return opening.done()
    finally:
        opening.cancel()
        stopping.cancel()
