"""A complete system of real processes, for faults to be injected into.

It has its own engines, senders and a receiver that record everything, and a seed that determines
the schedule of faults.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from motor.motor_asyncio import AsyncIOMotorClient

from tests.e2e import processes
from tests.faults.proxy import cutting
from tests.faults.verdict import FINAL, Verdict, judge
from tests.support import SECRET, Receiver, receiving, signed
from wds.domain.invariants import Expectations
from wds.local import embedded_engines
from wds.storage.mongo import AWARE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from tests.faults.proxy import Proxy


@dataclass
class Sender:
    """Posts events, each under its own key, and repeats each until it is acknowledged."""

    urls: list[str]
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Idempotency key -> event id, for every 2xx that arrived."""
    answered_at: list[tuple[float, float]] = field(default_factory=list)
    """(monotonic instant, seconds it took) of every 2xx."""
    refused: int = 0
    stopped: bool = False

    async def send(self, count: int, *, connections: int = 16, prefix: str = "e") -> None:
        """Send `count` events; return when all are acknowledged."""
        numbers = iter(range(count))
        timeout = aiohttp.ClientTimeout(total=15)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(self._work(session, numbers, prefix))

    async def _work(self, session: aiohttp.ClientSession, numbers: Any, prefix: str) -> None:
        for number in numbers:
            if self.stopped:
                return
            key = f"{prefix}{number}"
            body = json.dumps({"idempotency_key": key, "type": "fault", "n": number}).encode()
            tries = number
            while not await self._post(session, self.urls[tries % len(self.urls)], key, body):
                self.refused += 1
                tries += 1
                await asyncio.sleep(0.05)

    async def _post(self, session: aiohttp.ClientSession, url: str, key: str, body: bytes) -> bool:
        started = time.monotonic()
        try:
            target = f"{url}/webhooks/ingest"
            async with session.post(target, data=body, headers=signed(body)) as response:
                answer = await response.json()
                if response.status not in (200, 202):
                    assert response.status == 503, answer
                    return False
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            return False
        now = time.monotonic()
        self.acknowledged[key] = answer["id"]
        self.answered_at.append((now, now - started))
        return True


@dataclass
class Replica:
    """A process that can be killed and started again, under a new name each time."""

    command: str
    number: int
    env: dict[str, str]
    cwd: Path
    port: int
    process: processes.Process | None = None
    past: list[processes.Process] = field(default_factory=list)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        """Return the name of the present process at the receiver."""
        return f"{self.number}.{len(self.past)}"

    async def start(self) -> None:
        if self.process is not None:
            self.past.append(self.process)
        own = {"WDS_DOWNSTREAM_URL": f"{self.env['WDS_DOWNSTREAM_URL']}?replica={self.name}"}
        process = processes.running(self.command, env=self.env | own, cwd=self.cwd, url=self.url)
        self.process = await self.stack.enter_async_context(process)

    async def ready(self) -> None:
        assert self.process is not None
        await processes.ready(self.process, "/readyz")

    def signal(self, sig: int) -> None:
        assert self.process is not None
        self.process.process.send_signal(sig)


@dataclass
class System:
    """Everything that runs, and what was recorded of it."""

    home: Path
    rng: random.Random
    env: dict[str, str]
    mongods: list[embedded_engines.Server]
    redis: embedded_engines.Server
    receiver: Receiver
    db: Any
    ingests: list[Replica]
    dispatchers: list[Replica]
    sender: Sender
    proxy: Proxy
    stack: AsyncExitStack
    redis_stall_s: float = 0.0

    def until_the_end(self, server: embedded_engines.Server) -> embedded_engines.Server:
        """Stop a server that was started later together with the rest."""
        self.stack.push_async_callback(server.stop, signal.SIGKILL)
        return server

    def report(self, figure: str) -> None:
        """Print a measured figure; `pytest -s` and `-rP` show it."""
        sys.stdout.write(f"figure: {figure}\n")

    async def settled(self, count: int, within_s: float) -> None:
        """Wait until `count` events are final or time is up; `Verdict.stuck` has the others."""
        deadline = time.monotonic() + within_s
        final = {"status": {"$in": sorted(FINAL)}}
        while time.monotonic() < deadline:
            if await self.db.events.count_documents(final) >= count:
                return
            await asyncio.sleep(0.1)

    async def verdict(self, *, overdue_s: float = 60) -> Verdict:
        """Compare the records of senders, database and receiver."""
        hello = await self.db.command("hello", codec_options=AWARE)
        documents = await self.db.events.find().to_list(None)
        schedule = [float(part) for part in self.env["WDS_BACKOFF"].split(",")]
        attempts = int(self.env.get("WDS_MAX_ATTEMPTS", "5"))
        expected = Expectations(hello["localTime"], attempts, schedule, overdue_s)
        return judge(self.sender.acknowledged.values(), documents, self.receiver.requests, expected)


async def start_replica_set(nodes: int, home: Path) -> list[embedded_engines.Server]:
    """Start `nodes` mongods as one replica set that fails over quickly, with a primary."""
    members = [
        await embedded_engines.start_mongod(
            home / f"mongo-{number}", extra=("--setParameter", "enableTestCommands=1")
        )
        for number in range(nodes)
    ]
    config = {
        "_id": embedded_engines.REPLICA_SET,
        "members": [
            {"_id": number, "host": f"127.0.0.1:{server.port}"}
            for number, server in enumerate(members)
        ],
        "settings": {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500},
    }
    client: AsyncIOMotorClient[Any] = AsyncIOMotorClient(
        "127.0.0.1", members[0].port, directConnection=True
    )
    await client.admin.command("replSetInitiate", config)
    client.close()
    return members


def mongo_url(members: list[embedded_engines.Server]) -> str:
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in members)
    return f"mongodb://{hosts}/?replicaSet={embedded_engines.REPLICA_SET}"


@asynccontextmanager
async def system(
    tmp_path: Path,
    *,
    seed: int,
    nodes: int = 1,
    ingests: int = 2,
    dispatchers: int = 4,
    settings: Mapping[str, str] | None = None,
    receiver: Receiver | None = None,
    proxied: bool = False,
) -> AsyncIterator[System]:
    """Run everything inside the block; end every process after it.

    The receiver runs in this process unless `receiver` is another. Each dispatcher names itself in
    the URL that it sends to. `proxied` puts a proxy between the services and the first mongod.
    """
    async with AsyncExitStack() as stack:
        mongods = await start_replica_set(nodes, tmp_path)
        for server in mongods:
            stack.push_async_callback(server.stop, signal.SIGKILL)
        redis = await embedded_engines.start_redis(tmp_path / "redis")
        stack.push_async_callback(redis.stop, signal.SIGKILL)
        if receiver is None:
            receiver = await stack.enter_async_context(receiving())
        proxy = await stack.enter_async_context(cutting(mongods[0].port))
        env = {
            "WDS_HMAC_SECRET": SECRET,
            "WDS_MONGO_URL": proxy.url if proxied else mongo_url(mongods),
            "WDS_REDIS_URL": f"redis://127.0.0.1:{redis.port}/0",
            "WDS_DOWNSTREAM_URL": receiver.url,
            "WDS_RATE_LIMIT": "0",
            "WDS_LEASE": "3",
            "WDS_REQUEST_TIMEOUT": "1",
            "WDS_BACKOFF": "0.2,0.4,0.8",
            "WDS_MAX_ATTEMPTS": "8",
            **(settings or {}),
        }
        client: AsyncIOMotorClient[Any] = AsyncIOMotorClient(
            mongo_url(mongods), tz_aware=True, w="majority", readConcernLevel="majority"
        )
        stack.callback(client.close)
        replicas = []
        for command, count in (("ingest", ingests), ("dispatcher", dispatchers)):
            for number in range(count):
                port = embedded_engines.free_port()
                name = "WDS_PORT" if command == "ingest" else "WDS_METRICS_PORT"
                replica = Replica(command, number, {**env, name: str(port)}, tmp_path, port)
                await stack.enter_async_context(replica.stack)
                await replica.start()
                replicas.append(replica)
        for replica in replicas:
            await replica.ready()
        yield System(
            home=tmp_path,
            rng=random.Random(seed),
            env=env,
            mongods=mongods,
            redis=redis,
            receiver=receiver,
            db=client["wds"],
            ingests=replicas[:ingests],
            dispatchers=replicas[ingests:],
            sender=Sender([replica.url for replica in replicas[:ingests]]),
            proxy=proxy,
            stack=stack,
        )
