"""`python -m wds mock-downstream`: one mock downstream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wds import mock_downstream
from wds.cli.service_runner import run_until_signal
from wds.config import Settings
from wds.web import server

if TYPE_CHECKING:
    import asyncio
    from argparse import Namespace
    from collections.abc import Mapping


def run(_: Namespace, environ: Mapping[str, str]) -> int:
    """Receive deliveries until a signal; return the exit status."""
    settings = Settings.load(environ)

    async def serve(stop: asyncio.Event) -> None:
        app = mock_downstream.create_app(
            rate_limit=settings.mock_rate_limit,
            failure_rate=settings.mock_failure_rate,
            seed=settings.mock_seed,
            redis_url=settings.redis_url,
        )
        async with server.listening(app, settings.host, settings.mock_port):
            await stop.wait()

    return run_until_signal(serve)
