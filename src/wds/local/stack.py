"""The stack: engines where no URL is set, a mock downstream, an ingest service, dispatchers.

Each part is a child process in a session of its own, so that Ctrl-C reaches only this process. This
process then stops the parts in order: ingest first, engines last. The kernel ends the children if
this process is killed.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import aiohttp

from wds.domain.errors import StartError
from wds.local import embedded_engines
from wds.local.replica_set import initiate_replica_set

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from wds.config import Settings

    PrintLine = Callable[[str], None]

READY_TIMEOUT_S = 30.0
STOP_MARGIN_S = 8.0
"""Seconds that a part may take to stop, beyond the request timeout."""
MAX_LINE_BYTES = 1024 * 1024


class _Part(NamedTuple):
    """A part to start: its command, its health URL and its own environment variables."""

    name: str
    command: str
    health_url: str
    environ: Mapping[str, str] = {}


@dataclass
class Child:
    """A part that was started."""

    name: str
    process: asyncio.subprocess.Process
    health_url: str
    log: asyncio.Task[None]


@dataclass
class Stack:
    """The addresses and processes of a running stack.

    Attributes:
        engines: name and process of each engine that was started, in that order.
    """

    ingest_url: str
    mock_url: str
    children: list[Child] = field(default_factory=list)
    engines: list[tuple[str, asyncio.subprocess.Process]] = field(default_factory=list)


@asynccontextmanager
async def running(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    dispatchers: int,
    data_dir: Path,
    print_line: PrintLine,
    options: Sequence[str] = (),
) -> AsyncIterator[Stack]:
    """Run the stack for the block; when the block has ended, none of its processes is left.

    `environ` is the children's environment. `options` are inserted before their commands.
    `print_line` is called with each line of their logs.

    Raises:
        StartError: a part did not start; everything that did has been stopped.
    """
    async with AsyncExitStack() as engines:
        started: list[tuple[str, asyncio.subprocess.Process]] = []
        mongo_url = settings.mongo_url or await _mongod(engines, started, data_dir)
        redis_url = settings.redis_url or await _redis(engines, started, data_dir)
        stack = Stack(
            ingest_url=f"http://{settings.host}:{settings.port}",
            mock_url=f"http://{settings.host}:{settings.mock_port}",
            engines=started,
        )
        env = {**environ, "WDS_MONGO_URL": mongo_url, "WDS_REDIS_URL": redis_url}
        if not env.get("WDS_DOWNSTREAM_URL"):
            env["WDS_DOWNSTREAM_URL"] = f"{stack.mock_url}/downstream/receive"
        try:
            for part in _parts(stack, settings, dispatchers):
                stack.children.append(await _start(part, env, options, print_line))
            await _wait_until_ready(stack.children)
            yield stack
        finally:
            await _stop(stack.children, settings.request_timeout + STOP_MARGIN_S)


async def _mongod(
    engines: AsyncExitStack,
    started: list[tuple[str, asyncio.subprocess.Process]],
    data_dir: Path,
) -> str:
    server = await embedded_engines.start_mongod(data_dir / "mongo")
    started.append((server.name, server.process))
    engines.push_async_callback(server.stop)
    await initiate_replica_set("127.0.0.1", server.port, embedded_engines.REPLICA_SET)
    return f"mongodb://127.0.0.1:{server.port}/?replicaSet={embedded_engines.REPLICA_SET}"


async def _redis(
    engines: AsyncExitStack,
    started: list[tuple[str, asyncio.subprocess.Process]],
    data_dir: Path,
) -> str:
    server = await embedded_engines.start_redis(data_dir / "redis")
    started.append((server.name, server.process))
    engines.push_async_callback(server.stop)
    return f"redis://127.0.0.1:{server.port}/0"


def _parts(stack: Stack, settings: Settings, dispatchers: int) -> Iterator[_Part]:
    yield _Part("mock", "mock-downstream", f"{stack.mock_url}/healthz")
    yield _Part("ingest", "ingest", f"{stack.ingest_url}/readyz")
    for number in range(dispatchers):
        port = (
            settings.metrics_port + number
            if settings.metrics_port
            else embedded_engines.free_port()
        )
        url = f"http://{settings.host}:{port}/readyz"
        environ = {"WDS_METRICS_PORT": str(port)}
        yield _Part(f"dispatcher-{number + 1}", "dispatcher", url, environ)


async def _start(
    part: _Part, environ: Mapping[str, str], options: Sequence[str], print_line: PrintLine
) -> Child:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "wds", *options, part.command),
        env={**environ, **part.environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=embedded_engines.die_with_parent,
        limit=MAX_LINE_BYTES,
    )
    log = asyncio.create_task(_relay(part.name, process, print_line))
    return Child(part.name, process, part.health_url, log)


async def _relay(name: str, process: asyncio.subprocess.Process, print_line: PrintLine) -> None:
    """Print a child's lines. Never stop reading: the child would block on a full pipe."""
    if process.stdout is None:
        return
    while True:
        try:
            line = await process.stdout.readline()
        except ValueError:  # longer than MAX_LINE_BYTES; the reader has dropped it
            line = b"(a line too long to show)\n"
        if not line:
            return
        with suppress(OSError):  # the reader of our output has gone
            print_line(f"[{name}] {line.decode(errors='replace').rstrip()}")


async def _wait_until_ready(children: Sequence[Child]) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3)) as session:
        for child in children:
            await _wait_for(session, child)


async def _wait_for(session: aiohttp.ClientSession, child: Child) -> None:
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            while not await _is_ready(session, child.health_url):
                if child.process.returncode is not None:
                    await child.log
                    msg = f"{child.name} ended at start; its last line above says why"
                    raise StartError(msg)
                await asyncio.sleep(0.05)
    except TimeoutError:
        msg = f"{child.name} was not ready within {READY_TIMEOUT_S:g} s"
        raise StartError(msg) from None


async def _is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.status == 200  # noqa: PLR2004 - HTTP's
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _stop(children: list[Child], timeout_s: float) -> None:
    """Stop ingest, then all dispatchers together, then the mock that they deliver to."""
    try:
        for prefix in ("ingest", "dispatcher", "mock"):
            group = [child for child in children if child.name.startswith(prefix)]
            await asyncio.gather(
                *(embedded_engines.end(child.process, signal.SIGTERM, timeout_s) for child in group)
            )
            for child in group:
                await child.log
    except asyncio.CancelledError:  # a second signal: stop at once
        for child in children:
            await embedded_engines.end(child.process, signal.SIGKILL, timeout_s)
        raise
