"""What every HTTP process shares: listening, health, metrics, and waiting for the store."""

from __future__ import annotations

import asyncio
import errno
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import web
from prometheus_async import aio

from wds.domain.errors import LimiterUnavailableError, StartError, StoreUnavailableError
from wds.telemetry import metrics
from wds.web.error_envelope import envelope, json_answer
from wds.web.protocol import Runner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from aiohttp.typedefs import Handler, Middleware

    from wds.storage.store import Store

    Check = Callable[[], Awaitable[None]]

log = structlog.get_logger(__name__)

SHUTDOWN_TIMEOUT_S = 10.0
CHECK_TIMEOUT_S = 2.0
_MIB = 1024 * 1024


def new_app(
    max_body_bytes: int = _MIB,
    *,
    around: Sequence[Middleware] = (),
    inside: Sequence[Middleware] = (),
) -> web.Application:
    """Return an application that answers errors in the envelope and bounds bodies.

    `around` sees every answer as it goes out, those of the envelope included; what `inside`
    raises is answered in the envelope too.
    """
    app = web.Application(middlewares=[*around, envelope, *inside], client_max_size=max_body_bytes)

    async def expect_defects(app: web.Application) -> None:
        metrics.expect_defects(resource.canonical for resource in app.router.resources())

    app.on_startup.append(expect_defects)
    return app


async def metrics_page(request: web.Request) -> web.Response:
    """Answer with every metric of this process, in Prometheus's or OpenMetrics' text format."""
    return await aio.web.server_stats(request)


async def healthz(_request: web.Request) -> web.Response:
    """Answer that the process lives; it asks nobody else."""
    return json_answer({"status": "ok"})


def readyz(checks: Mapping[str, Check]) -> Handler:
    """Return a handler that answers 200 if every check passes in time, else 503 with reasons."""

    async def handler(_request: web.Request) -> web.Response:
        """Answer whether what this process depends on answers."""
        results = dict(
            zip(checks, await asyncio.gather(*map(_passes, checks.values())), strict=True)
        )
        ready = all(result == "ok" for result in results.values())
        body: dict[str, Any] = {"status": "ok" if ready else "unavailable", "checks": results}
        return json_answer(body, 200 if ready else 503)

    return handler


async def _passes(check: Check) -> str:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await check()
    except (StoreUnavailableError, LimiterUnavailableError, TimeoutError):
        return "unavailable"
    return "ok"


def watch_app(checks: Mapping[str, Check], guard: Middleware) -> web.Application:
    """Return an application for watching a process that serves nothing else."""
    app = new_app()
    app.middlewares.append(guard)
    app.router.add_get("/metrics", metrics_page)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz(checks))
    return app


@asynccontextmanager
async def listening(
    app: web.Application, host: str, port: int, *, shutdown_s: float = SHUTDOWN_TIMEOUT_S
) -> AsyncIterator[int]:
    """Serve `app` inside the block; the value is the port, useful where 0 was asked for.

    On leaving, no new connection is taken and running requests may finish. Bodies are handed
    over as sent: a compressed one is never expanded.

    Raises:
        StartError: the address cannot be had.
    """
    runner = Runner(app, shutdown_s=shutdown_s)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise StartError(_why_not(host, port, error)) from error
        bound: int = runner.addresses[0][1]
        log.info("listening", host=host, port=bound)
        yield bound
    finally:
        await runner.cleanup()


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; choose another or stop what listens there"
    return f"cannot listen on {host} port {port}: {error.strerror}"


async def opened(store: Store, stop: asyncio.Event) -> bool:
    """Open `store`, waiting as long as MongoDB is away; False if `stop` came first.

    Raises:
        StartError: the server must not be used.
    """
    opening = asyncio.create_task(store.open())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
        return opening.done()
    finally:
        opening.cancel()
        stopping.cancel()
