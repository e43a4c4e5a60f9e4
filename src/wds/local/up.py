"""`python -m wds up`: everything on this machine, until a signal."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from wds.cli import configuration
from wds.cli.service_runner import run_until_signal
from wds.local.stack import running

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager

    from wds.local.stack import Stack


def run(arguments: Namespace, environ: Mapping[str, str]) -> int:
    """Run the stack until a signal; return the exit status.

    Raises:
        StartError: a part did not start.
    """
    settings, _ = configuration.load(environ, require=("WDS_HMAC_SECRET",))

    async def up(stop: asyncio.Event) -> None:
        stack = running(
            settings,
            environ,
            dispatchers=arguments.dispatchers,
            data_dir=arguments.data_dir.resolve(),
            options=(f"--log-format={arguments.log_format}", f"--log-level={arguments.log_level}"),
            print_line=_print,
        )
        await _run_until(stop, stack)

    return run_until_signal(up)


async def _run_until(stop: asyncio.Event, stack: AbstractAsyncContextManager[Stack]) -> None:
    """Run `stack` until `stop`; cancel its start if `stop` comes earlier."""
    ready = asyncio.Event()
    body = asyncio.create_task(_announce(stack, ready, stop))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({body, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if ready.is_set() or body.done():
        await body
        return
    body.cancel()
    with suppress(asyncio.CancelledError):
        await body


async def _announce(
    stack: AbstractAsyncContextManager[Stack], ready: asyncio.Event, stop: asyncio.Event
) -> None:
    """Run `stack`, print its address and each process that ends, and leave it at `stop`."""
    async with stack as started:
        ready.set()
        url = started.ingest_url
        _print(f"[up] ready: POST {url}/webhooks/ingest, look at {url}/console; Ctrl-C stops it")
        processes = [
            *started.engines,
            *((child.name, child.process) for child in started.children),
        ]
        watchers = [asyncio.create_task(_print_end(*each)) for each in processes]
        await stop.wait()
        _print("[up] stopping")
        for watcher in watchers:
            watcher.cancel()


async def _print_end(name: str, process: asyncio.subprocess.Process) -> None:
    code = await process.wait()
    _print(f"[up] {name} ended with status {code}; the others go on")


def _print(line: str) -> None:
    print(line, flush=True)
