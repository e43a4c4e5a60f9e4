"""What several tests need: settings, events, signed requests, a recording receiver."""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web

from wds.config import Settings
from wds.domain.events import NewEvent, derived_id, random_id
from wds.signing.hmac_sha256 import sign
from wds.web.server import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from wds.storage.store import Store

T = TypeVar("T")

SECRET = "test-secret"


@dataclass(frozen=True)
class Engines:
    """Where the session's engines are."""

    mongo_url: str
    redis_url: str

    def environ(self, **changes: str) -> dict[str, str]:
        """Return settings as environment variables, with a database of their own."""
        return {
            "WDS_HMAC_SECRET": SECRET,
            "WDS_MONGO_URL": self.mongo_url,
            "WDS_REDIS_URL": self.redis_url,
            "WDS_MONGO_DB": f"test_{secrets.token_hex(6)}",
            **changes,
        }


def make_settings(engines: Engines, **changes: str) -> Settings:
    """Return settings on `engines`; `changes` are environment variables."""
    return Settings.load(engines.environ(**changes))


def signed(body: bytes, secret: str = SECRET) -> dict[str, str]:
    """Return the headers of a well-formed ingest request."""
    return {"Content-Type": "application/json", "X-Webhook-Signature": sign(secret, body)}


def new_event(payload: bytes = b'{"n":1}', *, key: str | None = None, **more: Any) -> NewEvent:
    """Return an event ready to be inserted."""
    event_id = (
        derived_id("default", key)
        if key is not None
        else random_id(datetime.now(UTC), secrets.token_bytes(10))
    )
    return NewEvent(
        id=event_id,
        source="default",
        payload=payload,
        content_type="application/json",
        idempotency_key=key,
        **more,
    )


async def eventually(
    look: Callable[[], T | Awaitable[T]],
    wanted: Callable[[T], bool] = bool,
    within_s: float = 15.0,
) -> T:
    """Call `look` until `wanted` accepts its result, and return that; fail after `within_s`.

    `look` may be a plain function or return an awaitable.
    """
    deadline = time.monotonic() + within_s
    while True:
        seen = look()
        if inspect.isawaitable(seen):
            seen = await seen
        if wanted(seen):
            return seen
        assert time.monotonic() < deadline, f"not within {within_s} s; last seen: {seen!r}"
        await asyncio.sleep(0.02)


async def clock_caught_up(store: Store) -> None:
    """Wait until what is due by MongoDB's clock at this moment is due by the store's reading of it.

    That reading is late by as long as it took, for as long as it is trusted.
    """
    instant = (await store._mongo.hello())["localTime"]
    await eventually(store.now, lambda now: now >= instant)


@dataclass
class Request:
    """One request as the receiver saw it, with the instant of its own monotonic clock."""

    at: float
    headers: dict[str, str]
    body: bytes
    replica: str = ""
    """Who sent it, if the URL it was told to send to says so."""
    status: int = 0
    """What it was answered with; 0 while it is not."""
    answered_at: float = 0.0


@dataclass
class Receiver:
    """A downstream that records everything and answers as told."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        at = time.monotonic()
        body = await request.read()
        seen = Request(at, dict(request.headers), body, request.query.get("replica", ""))
        self.requests.append(seen)
        answer = web.Response(text="ok") if self.answer is None else await self.answer(request)
        seen.status, seen.answered_at = answer.status, time.monotonic()
        return answer

    def exposed(self, replica: str, killed_at: float, recording_s: float = 0.25) -> Counter[str]:
        """Return the events whose attempt the death of `replica` can have made unknown.

        Those not answered then, and those answered so lately that it may not be recorded yet.
        """
        return Counter(
            each.headers["webhook-id"]
            for each in self.requests
            if each.replica == replica
            and (not each.status or each.answered_at > killed_at - recording_s)
        )

    @property
    def ids(self) -> list[str]:
        return [request.headers["webhook-id"] for request in self.requests]


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """Run a `Receiver` on a free port."""
    receiver = Receiver()
    app = web.Application(client_max_size=32 * 1024 * 1024)
    app.router.add_post("/hook", receiver.handle)
    async with listening(app, "127.0.0.1", 0) as port:
        receiver.url = f"http://127.0.0.1:{port}/hook"
        yield receiver


def most_in_any_second(instants: list[float], window_s: float = 1.0) -> int:
    """Return the most instants that fall within any window of `window_s` seconds."""
    ordered = sorted(instants)
    first = most = 0
    for last, instant in enumerate(ordered):
        while ordered[first] <= instant - window_s:
            first += 1
        most = max(most, last - first + 1)
    return most
