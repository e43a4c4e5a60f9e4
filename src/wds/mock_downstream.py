"""A receiver for trials and tests: it limits, fails, and keeps its own count of requests.

Imports nothing of the package except the page that shows its OpenAPI document, so that it cannot
share a mistake with the dispatcher. It counts by its own clock. With a Redis URL, its replicas
share one window.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
import uuid
import warnings
from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import marshmallow as ma
from aiohttp import web
from aiohttp_apispec import docs, json_schema, response_schema, setup_aiohttp_apispec
from marshmallow import fields, validate
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.exposition import choose_encoder
from redis.asyncio import Redis

from wds.web import swagger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp.typedefs import Handler

WINDOW_S = 1.0
MAX_BODY_BYTES = 32 * 1024 * 1024
REMEMBERED_IDS = 1_000_000

# Not the default registry: in a process that has loaded the rest of the package, it contains the
# metrics of the rest, which would report the mock's database as down.
REGISTRY = CollectorRegistry()
REQUESTS = Counter(
    "mock_downstream_requests_total",
    "Requests by result.",
    ["result"],
    registry=REGISTRY,
)

# KEYS[1]: member -> instant in microseconds of each admitted request; ARGV: limit, window, member.
# Returns 0 if the request is admitted, else the microseconds until one may be.
_ADMIT = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
if redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[1]) then
  redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[3])
  redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[2] / 1000))
  return 0
end
local oldest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
return math.max(1, tonumber(oldest) + ARGV[2] - now)
"""


class Window(Protocol):
    """Admits at most `limit` requests in any second."""

    async def admit(self, limit: int) -> float:
        """Return 0 if the request is admitted, else the seconds until one may be."""

    async def close(self) -> None:
        """Close the connections, if there are any."""


class LocalWindow:
    """One process's window, by its monotonic clock."""

    def __init__(self) -> None:
        """Start empty."""
        self._admitted: deque[float] = deque()

    async def admit(self, limit: int) -> float:
        """See `Window`."""
        now = time.monotonic()
        while self._admitted and self._admitted[0] <= now - WINDOW_S:
            self._admitted.popleft()
        if len(self._admitted) < limit:
            self._admitted.append(now)
            return 0.0
        return self._admitted[0] + WINDOW_S - now

    async def close(self) -> None:
        """Do nothing: there are no connections."""


class SharedWindow:
    """One window for all replicas, in Redis and by its clock."""

    def __init__(self, url: str) -> None:
        """Prepare a client."""
        self._redis: Redis = Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1)
        self._script = self._redis.register_script(_ADMIT)

    async def admit(self, limit: int) -> float:
        """See `Window`."""
        wait: int = await self._script(
            keys=["mock:window"], args=[limit, round(WINDOW_S * 1e6), uuid.uuid4().hex]
        )
        return wait / 1e6

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()


@dataclass(frozen=True)
class Behaviour:
    """The answers to requests within the limit.

    Attributes:
        mode: normal: 200, or 500 for a random share; fail: always 500; status: always
            `status`; slow: normal after `delay_s`; hang: close the
            connection after `delay_s`, without an answer.
        failure_rate: share of requests that `normal` and `slow` fail, 0 to 1.
        rate_limit: requests admitted in a second, 0 for no limit.
    """

    failure_rate: float
    rate_limit: int
    mode: str = "normal"
    status: int = 503
    delay_s: float = 5.0


class BehaviourSchema(ma.Schema):
    """The body of `PUT /downstream/behaviour`; absent fields return to their initial values."""

    mode = fields.String(
        validate=validate.OneOf(["normal", "fail", "status", "slow", "hang"]),
        metadata={"example": "normal"},
    )
    status = fields.Integer(strict=True, validate=validate.Range(200, 599))
    delay_s = fields.Float(validate=validate.Range(0, 3600))
    failure_rate = fields.Float(validate=validate.Range(0, 1))
    rate_limit = fields.Integer(strict=True, validate=validate.Range(0, 100_000))


class AnswerSchema(ma.Schema):
    """The answer to a delivery."""

    status = fields.String()


class DetailSchema(ma.Schema):
    """One problem of a request."""

    field = fields.String()
    message = fields.String()


class ErrorSchema(ma.Schema):
    """Why a request was refused."""

    code = fields.String(required=True)
    message = fields.String(required=True)
    details = fields.List(fields.Nested(DetailSchema), required=True)


class ErrorEnvelopeSchema(ma.Schema):
    """The answer to a refused request."""

    error = fields.Nested(ErrorSchema, required=True)


class StatsSchema(ma.Schema):
    """Counts since the start of this process."""

    received = fields.Integer(metadata={"description": "All requests."})
    accepted = fields.Integer(metadata={"description": "Answered 2xx."})
    limited = fields.Integer(metadata={"description": "Answered 429."})
    failed = fields.Integer(metadata={"description": "Admitted and not answered 2xx."})
    repeated = fields.Integer(
        metadata={"description": "Requests whose webhook-id had been accepted before."}
    )
    most_in_one_second = fields.Integer(
        metadata={"description": "Most requests that arrived within any one second."}
    )


class MockDownstream:
    """The handlers, and the counts of what has arrived."""

    def __init__(self, behaviour: Behaviour, window: Window, seed: int | None) -> None:
        """Start with `behaviour`; `seed` makes the random failures repeatable."""
        self._initial = behaviour
        self._behaviour = behaviour
        self._window = window
        self._random = random.Random(seed)  # noqa: S311 - failures, not secrets
        self._counts = dict.fromkeys(("received", "accepted", "limited", "failed", "repeated"), 0)
        self._accepted_ids: OrderedDict[str, None] = OrderedDict()
        self._arrivals: deque[float] = deque()
        self._most_in_one_second = 0

    async def receive(self, request: web.Request) -> web.StreamResponse:
        """Receive a delivery: 429 with Retry-After over the limit, else as the behaviour says."""
        await request.read()
        self._record_arrival(request)
        behaviour = self._behaviour
        if behaviour.rate_limit:
            wait = await self._window.admit(behaviour.rate_limit)
            if wait > 0:
                self._count("limited")
                return web.json_response(
                    {"status": "too many requests"},
                    status=429,
                    headers={"Retry-After": str(math.ceil(wait))},
                )
        if behaviour.mode in {"slow", "hang"}:
            await asyncio.sleep(behaviour.delay_s)
        if behaviour.mode == "hang":
            self._count("failed")
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=500)
        status = self._status(behaviour)
        if not 200 <= status < 300:  # noqa: PLR2004 - HTTP's
            self._count("failed")
            return web.json_response({"status": "failed on purpose"}, status=status)
        self._count("accepted")
        self._remember(request.headers.get("webhook-id"))
        return web.json_response({"status": "received"}, status=status)

    async def stats(self, _request: web.Request) -> web.Response:
        """Return the counts of what has arrived so far."""
        return web.json_response({**self._counts, "most_in_one_second": self._most_in_one_second})

    async def behave(self, request: web.Request) -> web.Response:
        """Change how deliveries are answered, from the next one on."""
        try:
            body: Any = await request.json()
            changes = BehaviourSchema().load(body)
        except ma.ValidationError as error:
            return _refused(422, "invalid_request", error.messages)
        except (ValueError, RecursionError, LookupError):
            return _refused(400, "invalid_json", {})
        self._behaviour = replace(self._initial, **changes)
        return web.json_response(vars(self._behaviour))

    async def behaviour(self, _request: web.Request) -> web.Response:
        """Return how deliveries are answered now."""
        return web.json_response(vars(self._behaviour))

    async def window(self, _app: web.Application) -> AsyncIterator[None]:
        """Close the window with the application."""
        yield
        await self._window.close()

    def _status(self, behaviour: Behaviour) -> int:
        if behaviour.mode == "status":
            return behaviour.status
        if behaviour.mode == "fail" or self._random.random() < behaviour.failure_rate:
            return 500
        return 200

    def _record_arrival(self, request: web.Request) -> None:
        now = time.monotonic()
        self._count("received")
        self._arrivals.append(now)
        while self._arrivals[0] <= now - WINDOW_S:
            self._arrivals.popleft()
        self._most_in_one_second = max(self._most_in_one_second, len(self._arrivals))
        if request.headers.get("webhook-id") in self._accepted_ids:
            self._count("repeated")

    def _remember(self, event_id: str | None) -> None:
        if event_id is None:
            return
        self._accepted_ids[event_id] = None
        if len(self._accepted_ids) > REMEMBERED_IDS:
            self._accepted_ids.popitem(last=False)

    def _count(self, result: str) -> None:
        self._counts[result] += 1
        REQUESTS.labels(result).inc()


def _refused(status: int, code: str, messages: Any) -> web.Response:  # noqa: ANN401
    details = [
        {"field": name, "message": str(text)} for name, texts in messages.items() for text in texts
    ]
    error = {"code": code, "message": "not a valid behaviour of the mock", "details": details}
    return web.json_response({"error": error}, status=status)


async def healthz(_request: web.Request) -> web.Response:
    """Answer that the process is alive."""
    return web.json_response({"status": "ok"})


async def metrics_page(request: web.Request) -> web.Response:
    """Return the mock's metrics in the text format of Prometheus or OpenMetrics."""
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return web.Response(body=encode(REGISTRY), headers={"Content-Type": content_type})


def create_app(
    *,
    rate_limit: int = 3,
    failure_rate: float = 0.15,
    seed: int | None = None,
    redis_url: str | None = None,
) -> web.Application:
    """Return the mock. `rate_limit`: requests a second, 0 for all; `failure_rate`: 0 to 1."""
    window = SharedWindow(redis_url) if redis_url else LocalWindow()
    mock = MockDownstream(Behaviour(failure_rate, rate_limit), window, seed)
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.cleanup_ctx.append(mock.window)
    receive, behave = "/downstream/receive", "/downstream/behaviour"
    _add(app, _Route("POST", receive, mock.receive, "Receive a delivery", AnswerSchema))
    _add(
        app,
        _Route("GET", "/downstream/stats", mock.stats, "Counts of what has arrived", StatsSchema),
    )
    _add(app, _Route("GET", behave, mock.behaviour, "Current behaviour", BehaviourSchema))
    change = _Route(
        "PUT", behave, mock.behave, "Change the behaviour", BehaviourSchema, BehaviourSchema
    )
    _add(app, change)
    _add(app, _Route("GET", "/healthz", healthz, "Health", AnswerSchema))
    _add(app, _Route("GET", "/metrics", metrics_page, "Prometheus metrics", None))
    with warnings.catch_warnings():
        # aiohttp_apispec keeps its state under plain strings, and aiohttp warns about that.
        warnings.simplefilter("ignore", web.NotAppKeyWarning)
        setup_aiohttp_apispec(
            app,
            title="wds: mock downstream",
            version="1",
            url=swagger.DOCUMENT,
            in_place=True,
        )
    for method, path, handler in swagger.routes():
        app.router.add_route(method, path, handler)
    return app


@dataclass(frozen=True)
class _Route:
    method: str
    path: str
    handler: Handler
    summary: str
    answer: type[ma.Schema] | None
    body: type[ma.Schema] | None = None


def _add(app: web.Application, route: _Route) -> None:
    """Register a handler with its description, wrapped: the description is set on the function."""

    async def described(request: web.Request) -> web.StreamResponse:
        return await route.handler(request)

    text = " ".join((route.handler.__doc__ or "").split())
    plain = {"produces": ["text/plain"], "responses": {"200": {"description": "As text"}}}
    more: Any = plain if route.answer is None else {}
    annotated: Any = docs(summary=route.summary, description=text, **more)(described)
    if route.answer is not None:
        annotated = response_schema(route.answer, 200)(annotated)
    if route.method == "POST":
        # In mode `status` the answer may have any status.
        for code, text in {"429": "Over the limit", "default": "Failed on purpose"}.items():
            annotated = response_schema(AnswerSchema, code, description=text)(annotated)
        wait = {"Retry-After": {"type": "integer", "description": "Seconds."}}
        annotated.__apispec__["responses"]["429"]["headers"] = wait
    if route.method == "PUT":
        for code, text in {"400": "Not JSON", "422": "Not a valid behaviour"}.items():
            annotated = response_schema(ErrorEnvelopeSchema, code, description=text)(annotated)
    if route.body is not None:
        example = {"mode": "status", "status": 503, "failure_rate": 0.5}
        annotated = json_schema(route.body, example=example, add_to_refs=True, required=True)(
            annotated
        )
    app.router.add_route(route.method, route.path, annotated)
