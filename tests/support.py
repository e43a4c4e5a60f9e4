"""Shared by the tests: settings, events, signed requests, metrics, a recording receiver."""

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
from prometheus_client import REGISTRY

from wds.config import Settings
from wds.domain import destinations
from wds.domain.events import NewEvent, derived_id, random_id
from wds.signing.hmac_sha256 import sign
from wds.web.server import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from wds.delivery.http_client import HttpClient
    from wds.domain.attempt_results import AttemptResult, NotSent
    from wds.domain.deliveries import Claim
    from wds.storage.store import Store

T = TypeVar("T")

SECRET = "test-secret"


@dataclass(frozen=True)
class Engines:
    """The addresses of the session's engines."""

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
    """Return settings for `engines`; `changes` are environment variables."""
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


def make_destination(url: str, **changes: Any) -> destinations.Destination:
    """Return the default destination at `url`; `changes` are fields of `Destination`."""
    fields = {"backoff": (1.0,), "max_attempts": 5, "timeout_s": 15.0, "max_in_flight": 4}
    return destinations.Destination(
        name=destinations.DEFAULT_DESTINATION, url=url, **{**fields, **changes}
    )


async def send(
    client: HttpClient, claim: Claim, headers: Mapping[str, str] | None = None
) -> AttemptResult | NotSent:
    """Connect, and send at once."""
    async with client.connect(claim) as request:
        return await request.send(headers or {})


async def eventually(
    look: Callable[[], T | Awaitable[T]],
    accept: Callable[[T], bool] = bool,
    within_s: float = 15.0,
) -> T:
    """Call `look` until `accept` is true of its result, and return that; fail after `within_s`.

    `look` may be a plain function or return an awaitable.
    """
    deadline = time.monotonic() + within_s
    while True:
        seen = look()
        if inspect.isawaitable(seen):
            seen = await seen
        if accept(seen):
            return seen
        assert time.monotonic() < deadline, f"not within {within_s} s; last seen: {seen!r}"
        await asyncio.sleep(0.02)


async def clock_caught_up(store: Store) -> None:
    """Wait until everything that is due now by MongoDB's clock is due by `store.now()`.

    The store's clock is late by the round trip of its last reading.
    """
    instant = (await store._mongo.hello())["localTime"]
    await eventually(store.now, lambda now: now >= instant)


def sample(name: str, **labels: str) -> float:
    """Return the value of a metric of this process, 0 if it has none yet."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


@dataclass
class Request:
    """One request as the receiver saw it, with the instant of its own monotonic clock."""

    at: float
    headers: dict[str, str]
    body: bytes
    replica: str = ""
    """The sender, if the query of the URL names it."""
    status: int = 0
    """Of the answer; 0 before it is sent."""
    answered_at: float = 0.0


@dataclass
class Receiver:
    """A downstream that records every request and answers as `answer` does."""

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
        """Return the events whose attempt may be unknown after the death of `replica`.

        They had no answer at `killed_at`, or one so recent that it may not have been recorded.
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
