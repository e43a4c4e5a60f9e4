"""Everything on this machine: engines where no URL is given, mock, ingest, N dispatchers.

Each part is a child process in a session of its own, so that a Ctrl-C reaches only this
process, which then stops the parts in order: senders' side first, engines last. Children die
with this process whatever kills it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp

from wds.domain.errors import StartError
from wds.local import embedded_engines
from wds.local.replica_set import initiate_replica_set

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from wds.config import Settings

READY_TIMEOUT_S = 30.0
STOP_MARGIN_S = 8.0


@dataclass
class Child:
    """One part of the stack."""

    name: str
    process: asyncio.subprocess.Process
    health_url: str
    log: asyncio.Task[None]


@dataclass
class Stack:
    """What runs, and where."""

    ingest_url: str
    mock_url: str
    mongo_url: str
    redis_url: str
    children: list[Child] = field(default_factory=list)
    engines: list[tuple[str, asyncio.subprocess.Process]] = field(default_factory=list)


@asynccontextmanager
async def running(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    dispatchers: int,
    data_dir: Path,
    say: Callable[[str], None],
    options: Sequence[str] = (),
) -> AsyncIterator[Stack]:
    """Run the whole stack inside the block; on leaving, every process of it is gone.

    `environ` is the children's environment, `options` go before their commands, `say` takes
    each line of their logs.

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
            mongo_url=mongo_url,
            redis_url=redis_url,
            engines=started,
        )
        env = {**environ, "WDS_MONGO_URL": mongo_url, "WDS_REDIS_URL": redis_url}
        if not env.get("WDS_DOWNSTREAM_URL"):
            env["WDS_DOWNSTREAM_URL"] = f"{stack.mock_url}/downstream/receive"
        try:
            await _start_parts(stack, settings, env, dispatchers, say, options=options)
            yield stack
        finally:
            await _stop(stack.children, settings.request_timeout + STOP_MARGIN_S)


async def up(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    dispatchers: int,
    data_dir: Path,
    options: Sequence[str],
    say: Callable[[str], None],
    stop: asyncio.Event,
) -> None:
    """Run the stack until `stop`, and say where it is.

    Raises:
        StartError: a part did not start.
    """
    ready = asyncio.Event()

    async def run() -> None:
        async with running(
            settings,
            environ,
            dispatchers=dispatchers,
            data_dir=data_dir,
            options=options,
            say=say,
        ) as stack:
            ready.set()
            here = stack.ingest_url
            say(f"[up] ready: POST {here}/webhooks/ingest, look at {here}/console; Ctrl-C stops it")
            parts = [*stack.engines, *((child.name, child.process) for child in stack.children)]
            watching = [asyncio.create_task(_tell_end(*part, say)) for part in parts]
            await stop.wait()
            say("[up] stopping")
            for task in watching:
                task.cancel()

    body = asyncio.create_task(run())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({body, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if ready.is_set() or body.done():
        await body
        return
    body.cancel()
    with suppress(asyncio.CancelledError):
        await body


async def _tell_end(
    name: str, process: asyncio.subprocess.Process, say: Callable[[str], None]
) -> None:
    code = await process.wait()
    say(f"[up] {name} ended with status {code}; the others go on")


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


async def _start_parts(
    stack: Stack,
    settings: Settings,
    env: Mapping[str, str],
    dispatchers: int,
    say: Callable[[str], None],
    *,
    options: Sequence[str],
) -> None:
    parts: list[tuple[str, str, str, dict[str, str]]] = [
        ("mock", "mock-downstream", f"{stack.mock_url}/healthz", {}),
        ("ingest", "ingest", f"{stack.ingest_url}/readyz", {}),
    ]
    for number in range(dispatchers):
        port = (
            settings.metrics_port + number
            if settings.metrics_port
            else embedded_engines.free_port()
        )
        name = f"dispatcher-{number + 1}"
        url = f"http://{settings.host}:{port}/readyz"
        parts.append((name, "dispatcher", url, {"WDS_METRICS_PORT": str(port)}))
    for name, command, url, extra in parts:
        full = (*options, command)
        stack.children.append(await _spawn(name, full, url, {**env, **extra}, say))
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3)) as session:
        for child in stack.children:
            await _until_ready(session, child)


async def _spawn(
    name: str, command: Sequence[str], url: str, env: Mapping[str, str], say: Callable[[str], None]
) -> Child:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "wds", *command),
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=embedded_engines.die_with_parent,
        limit=1024 * 1024,
    )
    return Child(name, process, url, asyncio.create_task(_relay(name, process, say)))


async def _relay(
    name: str, process: asyncio.subprocess.Process, say: Callable[[str], None]
) -> None:
    """Pass a child's lines on; whatever happens, go on reading, or the child would block."""
    if process.stdout is None:
        return
    while True:
        try:
            line = await process.stdout.readline()
        except ValueError:  # longer than the reader's limit, and dropped by it
            line = b"(a line too long to show)\n"
        if not line:
            return
        with suppress(OSError):  # whoever read our output has gone
            say(f"[{name}] {line.decode(errors='replace').rstrip()}")


async def _until_ready(session: aiohttp.ClientSession, child: Child) -> None:
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
    """Stop ingest, then the dispatchers together, then the mock they deliver to."""
    try:
        for prefix in ("ingest", "dispatcher", "mock"):
            group = [child for child in children if child.name.startswith(prefix)]
            await asyncio.gather(
                *(embedded_engines.end(child.process, signal.SIGTERM, timeout_s) for child in group)
            )
            for child in group:
                await child.log
    except asyncio.CancelledError:  # asked twice: no more patience
        for child in children:
            await embedded_engines.end(child.process, signal.SIGKILL, timeout_s)
        raise
