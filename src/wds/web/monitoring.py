"""Health and metrics of a process: the handlers, and an application that serves only these."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from prometheus_async import aio

from wds.domain.errors import LimiterUnavailableError, StoreUnavailableError
from wds.web.error_envelope import json_answer
from wds.web.server import new_app

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from aiohttp import web
    from aiohttp.typedefs import Handler, Middleware

    Check = Callable[[], Awaitable[None]]

CHECK_TIMEOUT_S = 2.0


async def metrics_page(request: web.Request) -> web.Response:
    """Answer with every metric of this process, in Prometheus's or OpenMetrics' text format."""
    return await aio.web.server_stats(request)


async def healthz(_request: web.Request) -> web.Response:
    """Answer that the process is alive, without asking any other service."""
    return json_answer({"status": "ok"})


def readyz(checks: Mapping[str, Check]) -> Handler:
    """Return a handler: 200 if every check passes within `CHECK_TIMEOUT_S`, else 503 with reasons.

    A check passes if it returns. It fails by raising StoreUnavailableError or
    LimiterUnavailableError.
    """

    async def handler(_request: web.Request) -> web.Response:
        """Answer whether the services that this process depends on respond."""
        results = dict(
            zip(checks, await asyncio.gather(*map(_check_result, checks.values())), strict=True)
        )
        ready = all(result == "ok" for result in results.values())
        body: dict[str, Any] = {"status": "ok" if ready else "unavailable", "checks": results}
        return json_answer(body, 200 if ready else 503)

    return handler


async def _check_result(check: Check) -> str:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await check()
    except (StoreUnavailableError, LimiterUnavailableError, TimeoutError):
        return "unavailable"
    return "ok"


def monitoring_app(checks: Mapping[str, Check], guard: Middleware) -> web.Application:
    """Return an application of these routes only, for a process that serves no others."""
    app = new_app()
    app.middlewares.append(guard)
    app.router.add_get("/metrics", metrics_page)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz(checks))
    return app
