"""Real processes of the product, started as a user starts them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from tests.support import eventually
from wds.local import embedded_engines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

CLEAN_ENVIRON = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("WDS_", "OTEL_")) and name != "PYTHONDONTWRITEBYTECODE"
}
"""The environment without settings. Bytecode is written, because each of the hundreds of processes
would take 0.2 s longer to start if it had to compile the package."""


@dataclass
class Process:
    """A running command; its standard output and error arrive in `lines`."""

    name: str
    process: asyncio.subprocess.Process
    url: str = ""
    lines: list[str] = field(default_factory=list)
    reader: asyncio.Task[None] | None = None

    async def read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().rstrip())

    async def ended(self, within_s: float = 30) -> int:
        """Wait for the end and for the last of its output; return the exit status."""
        async with asyncio.timeout(within_s):
            status = await self.process.wait()
            if self.reader is not None:
                await self.reader
        return status

    async def stop(self, sig: signal.Signals = signal.SIGTERM, within_s: float = 30) -> int:
        if self.process.returncode is None:
            self.process.send_signal(sig)
        return await self.ended(within_s)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@asynccontextmanager
async def running(
    *arguments: str,
    env: Mapping[str, str],
    cwd: Path | None = None,
    url: str = "",
    command: tuple[str, ...] = (sys.executable, "-m", "wds"),
) -> AsyncIterator[Process]:
    """Run `python -m wds ARGUMENTS` for the block, then kill what is left of it."""
    process = await asyncio.create_subprocess_exec(
        *(*command, *arguments),
        env={**CLEAN_ENVIRON, **env},
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        limit=1024 * 1024,
    )
    started = Process(" ".join(arguments), process, url)
    started.reader = asyncio.create_task(started.read())
    try:
        yield started
    finally:
        await embedded_engines.end(process, signal.SIGKILL, 5)
        await started.reader


@asynccontextmanager
async def ingest(env: Mapping[str, str], *, cwd: Path) -> AsyncIterator[Process]:
    """Run an ingest service on a free port, ready."""
    port = embedded_engines.free_port()
    url = f"http://127.0.0.1:{port}"
    async with running("ingest", env={**env, "WDS_PORT": str(port)}, cwd=cwd, url=url) as service:
        await ready(service, "/readyz")
        yield service


@asynccontextmanager
async def dispatcher(env: Mapping[str, str], *, cwd: Path) -> AsyncIterator[Process]:
    """Run a dispatcher with its metrics on a free port, ready."""
    port = embedded_engines.free_port()
    more = {"WDS_METRICS_PORT": str(port)}
    url = f"http://127.0.0.1:{port}"
    async with running("dispatcher", env={**env, **more}, cwd=cwd, url=url) as service:
        await ready(service, "/readyz")
        yield service


@asynccontextmanager
async def mock(env: Mapping[str, str], *, cwd: Path) -> AsyncIterator[Process]:
    """Run a mock downstream on a free port, ready."""
    port = embedded_engines.free_port()
    more = {"WDS_MOCK_PORT": str(port)}
    url = f"http://127.0.0.1:{port}"
    async with running("mock-downstream", env={**env, **more}, cwd=cwd, url=url) as service:
        await ready(service, "/healthz")
        yield service


async def ready(process: Process, path: str) -> None:
    """Wait until the process answers 200 at `path`; fail with its output if it ends first."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3)) as session:

        async def look() -> bool:
            assert process.process.returncode is None, process.text
            try:
                async with session.get(process.url + path) as response:
                    return response.status == 200
            except (aiohttp.ClientError, TimeoutError):
                return False

        await eventually(look)


async def get_json(url: str) -> dict[str, object]:
    """Return the JSON of the answer to a GET."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200
        answer: dict[str, object] = await response.json()
        return answer


async def get_text(url: str) -> str:
    """Return the text of the answer to a GET."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200
        return await response.text()


def descendants(pid: int) -> set[int]:
    """Return the pids of all descendants of a process, from Linux's /proc."""
    found: set[int] = set()
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the process has ended
            for child in tasks.read_text().split():
                found |= {int(child)} | descendants(int(child))
    return found


def alive(pids: set[int]) -> set[int]:
    """Return those of `pids` that still run; a zombie does not."""
    running_now = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            running_now.add(pid)
    return running_now
