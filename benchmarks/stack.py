"""The processes of a measurement: engines, commands, peers and a sink, and their CPU and memory."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil
from pymongo import MongoClient

from wds.local import embedded_engines
from wds.local.replica_set import initiate_replica_set

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

SECRET = "benchmark-secret"  # noqa: S105 - of a service that lives for seconds
START_S = 60.0
CACHE_GB = 4.0
"""MongoDB's cache, the same for all sides: that of a small machine with nothing else on it."""
_CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("WDS_")}


class Tree:
    """The CPU time and the memory of a process and its descendants."""

    def __init__(self, pid: int) -> None:
        """`pid` is the root of the tree."""
        self._root = psutil.Process(pid)

    def _all(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]

    def cpu_s(self) -> float:
        """Return the seconds of CPU, user and system, that the living processes have used."""
        used = 0.0
        for process in self._all():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                used += times.user + times.system
        return used

    def rss_mb(self) -> float:
        """Return the resident memory now, in MB."""
        return sum(process.memory_info().rss for process in self._all()) / 1e6


@dataclass
class Engines:
    """The engines that the sides use one after another; `home` is for temporary files."""

    home: Path
    mongo_url: str
    redis_url: str
    mongod: Tree
    client: MongoClient[dict[str, Any]]
    databases: list[str] = field(default_factory=list)

    def database(self, *, keep: bool = False) -> str:
        """Return the name of a new database; `drop` spares it if `keep`."""
        name = f"bench_{secrets.token_hex(4)}"
        if not keep:
            self.databases.append(name)
        return name

    def environ(self, database: str, **more: str) -> dict[str, str]:
        """Return the settings of wds and of the peers, for these engines."""
        return {
            "WDS_HMAC_SECRET": SECRET,
            "WDS_MONGO_URL": self.mongo_url,
            "WDS_MONGO_DB": database,
            "WDS_REDIS_URL": self.redis_url,
            "WDS_RATE_LIMIT": "0",
            "WDS_METRICS_PORT": "0",
            "MONGO_URL": self.mongo_url,
            "MONGO_DB": database,
            "REDIS_URL": self.redis_url,
            **more,
        }

    def drop(self) -> None:
        """Drop the databases, so that no side pays for the data of another."""
        for name in self.databases:
            self.client.drop_database(name)
        self.databases.clear()


@asynccontextmanager
async def engines(home: Path) -> AsyncIterator[Engines]:
    """Run a replica set of one node, with a journal, and a Redis for the block."""
    async with AsyncExitStack() as stack:
        mongod = await embedded_engines.start_mongod(home / "mongo", cache_gb=CACHE_GB)
        stack.push_async_callback(mongod.stop)
        await initiate_replica_set("127.0.0.1", mongod.port, embedded_engines.REPLICA_SET)
        redis = await embedded_engines.start_redis(home / "redis")
        stack.push_async_callback(redis.stop)
        mongo_url = f"mongodb://127.0.0.1:{mongod.port}/?replicaSet={embedded_engines.REPLICA_SET}"
        client: MongoClient[dict[str, Any]] = MongoClient(mongo_url, w="majority", journal=True)
        stack.callback(client.close)
        yield Engines(
            home,
            mongo_url,
            f"redis://127.0.0.1:{redis.port}/0",
            Tree(mongod.process.pid),
            client,
        )


@dataclass
class Running:
    """A started command."""

    process: asyncio.subprocess.Process
    tree: Tree


@asynccontextmanager
async def command(
    arguments: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    *,
    port: int | None = None,
    log: Path | None = None,
) -> AsyncIterator[Running]:
    """Run a command for the block; with a port, the block begins when the command listens there.

    What it prints goes to `command.log` in the folder `log`, or where it runs.
    """
    with ((log or cwd) / "command.log").open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            env={**_CLEAN, **env},
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=embedded_engines.die_with_parent,
        )
    try:
        if port is not None:
            await _listening(process, arguments[0], port)
        yield Running(process, Tree(process.pid))
    finally:
        await embedded_engines.end(process, signal.SIGTERM, 15)


async def _listening(process: asyncio.subprocess.Process, name: str, port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        if process.returncode is not None or time.monotonic() > deadline:
            msg = f"{name} did not listen on port {port}"
            raise RuntimeError(msg)
        await asyncio.sleep(0.05)


def wds(*arguments: str) -> list[str]:
    """Return the command line of a command of wds."""
    return [sys.executable, "-m", "wds", *arguments]


ROOT = Path(__file__).parent.parent
"""Working directory of the bare programs, so that Python finds them."""


def bench(module: str, *arguments: str) -> list[str]:
    """Return the command line of a bare program of this package."""
    return [sys.executable, "-m", f"benchmarks.{module}", *arguments]


_SINK = """
worker_processes 1; daemon off; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; client_max_body_size 32m;
  client_body_buffer_size 2m; client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi; uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location = /count {{ stub_status; }}
    location / {{ return 200 'ok'; }}
  }}
}}
"""


@dataclass
class Sink:
    """An nginx that answers 200 to everything and counts."""

    url: str
    session: aiohttp.ClientSession
    looks: int = 0

    async def served(self) -> int:
        """Return the number of requests it has answered, without those of this method."""
        self.looks += 1
        async with self.session.get(f"{self.url}/count") as response:
            return int((await response.text()).split("\n")[2].split()[2]) - self.looks

    async def rate(self, count: int, within_s: float) -> float:
        """Wait for `count` more requests; return their rate per second between 10 % and 90 %."""
        base = await self.served()
        marks: dict[float, float] = {}
        deadline = time.monotonic() + within_s
        while 1.0 not in marks:
            done = await self.served() - base
            now = time.monotonic()
            for share in (0.1, 0.9, 1.0):
                if done >= count * share:
                    marks.setdefault(share, now)
            if now > deadline:
                msg = f"only {done} of {count} arrived within {within_s} s"
                raise RuntimeError(msg)
            await asyncio.sleep(0.02)
        return 0.8 * count / (marks[0.9] - marks[0.1])


@asynccontextmanager
async def sink(home: Path) -> AsyncIterator[Sink]:
    """Run the sink on a free port."""
    place = home / f"sink-{secrets.token_hex(4)}"
    place.mkdir()
    port = embedded_engines.free_port()
    (place / "nginx.conf").write_text(_SINK.format(home=place, port=port))
    arguments = ["nginx", "-p", str(place), "-c", str(place / "nginx.conf")]
    async with (
        command(arguments, {}, place, port=port),
        aiohttp.ClientSession() as session,
    ):
        yield Sink(f"http://127.0.0.1:{port}", session, looks=0)
