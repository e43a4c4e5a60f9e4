"""The connection to MongoDB: write guarantees, retries and their time limits, the database's clock.

Every write through it is confirmed by a majority and journaled. Transport errors are retried for a
bounded time (tenacity); an error that remains is `StoreUnavailableError`. A standalone server is
refused: it has no majority and can lose writes that it confirmed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from bson import CodecOptions
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import ExecutionTimeout, PyMongoError
from tenacity import (
    AsyncRetrying,
    RetryError,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from wds.domain.errors import (
    SearchTooSlowError,
    StandaloneRefusedError,
    StartError,
    StoreUnavailableError,
)
from wds.storage.mongo_errors import is_transient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from tenacity import RetryCallState

T = TypeVar("T")
Session = AsyncClientSession

# Plain dictionaries, as PyMongo takes and returns them. `event_documents` has the stored event.
Document = dict[str, Any]
"""A document that was read, or that is inserted."""
Query = dict[str, Any]
"""The conditions that a document must match: the filter of a read or write."""
Expression = dict[str, Any]
"""An aggregation expression, or fields that are set to expressions."""
Pipeline = list[dict[str, Any]]
"""An aggregation or an update, as stages."""
Command = dict[str, Any]
"""A database command."""

log = structlog.get_logger(__name__)

SERVER_SELECTION_TIMEOUT_S = 3.0
SOCKET_TIMEOUT_S = 10.0
SEARCH_LIMIT_MS = 8_000
"""Milliseconds after which the server ends a search. Well before the socket times out: the driver
would take that for a broken connection and repeat the whole search."""
HEARTBEAT_S = 2.0
"""Seconds between the driver's checks of a server; its default, 10, finds a new primary late."""
WRITE_BUDGET_S = 8.0
"""Seconds for which an insert is retried on transport errors before the sender gets 503."""
READ_BUDGET_S = 5.0
"""Seconds for which a read is retried: one that decides whether a write took place, or one that an
operator waits for."""
CLOSE_S = 0.2
"""Seconds that each step of closing may take."""
FOREVER = float("inf")
MILLISECOND_S = 0.001
CLOCK_TRUST_S = 5.0
"""Seconds after which the database's clock is read again."""

AWARE: CodecOptions[Document] = CodecOptions(tz_aware=True)
"""For `command`, which ignores the codec options of the client."""


class MongoDatabase:
    """One database, through two clients of the same driver.

    Attributes:
        db: through Motor, which hands each call to a thread. For the requests of operators.
        queue_db: through PyMongo's asyncio client, which stays on the event loop. For what moves
            events: threads that compete for the interpreter cost each event a quarter more.
        sharded: True if the server is the `mongos` of a sharded cluster; known once open.
    """

    def __init__(self, url: str, database: str) -> None:
        """Prepare the clients. Nothing is sent until `open`.

        Raises:
            StartError: the URL is malformed. The message omits it, as it may hold a password.
        """
        options: dict[str, Any] = {
            "tz_aware": True,
            "w": "majority",
            "journal": True,
            "wTimeoutMS": int(WRITE_BUDGET_S * 1000),
            "retryWrites": True,
            "retryReads": True,
            "serverSelectionTimeoutMS": int(SERVER_SELECTION_TIMEOUT_S * 1000),
            "heartbeatFrequencyMS": int(HEARTBEAT_S * 1000),
            "connectTimeoutMS": int(SERVER_SELECTION_TIMEOUT_S * 1000),
            "socketTimeoutMS": int(SOCKET_TIMEOUT_S * 1000),
            "readPreference": "primary",
            "appname": "wds",
        }
        try:
            self._client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(url, **options)
            self._queue_client: AsyncMongoClient[Document] = AsyncMongoClient(url, **options)
        except (PyMongoError, ValueError) as error:
            msg = f"WDS_MONGO_URL cannot be used: {type(error).__name__}"
            raise StartError(msg) from error
        self.db = self._client[database]
        self.queue_db = self._queue_client[database]
        self.sharded = False
        self._ending_sessions: set[asyncio.Future[None]] = set()
        self._clock_read_at = -CLOCK_TRUST_S
        self._clock_ahead_s = (0.0, 0.0)

    async def open(self) -> None:
        """Wait until the server answers and check what kind it is.

        Raises:
            StandaloneRefusedError: the server is not a member of a replica set.
            StartError: the server refuses this client.
        """
        try:
            hello = await self.try_for(FOREVER, self.hello)
        except StoreUnavailableError as error:
            msg = f"MongoDB at WDS_MONGO_URL refuses this client: {error}"
            raise StartError(msg) from error
        self.sharded = hello.get("msg") == "isdbgrid"
        if "setName" not in hello and not self.sharded:
            msg = (
                "MongoDB at WDS_MONGO_URL is a standalone server, which can lose acknowledged"
                " events: start mongod with --replSet and run rs.initiate(); one node is enough"
            )
            raise StandaloneRefusedError(msg)

    async def close(self) -> None:
        """Close all connections; before that, end transactions and sessions if that is quick.

        A server that hangs does not receive this; it ends them after a timeout of its own.
        """
        await asyncio.gather(self._close_motor(), self._close_queue_client())

    async def _close_queue_client(self) -> None:
        # close() ends sessions, then cursors; a repeated close() skips those it has tried to end.
        for _ in range(3):
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await asyncio.gather(*self._ending_sessions, return_exceptions=True)
                    await self._queue_client.close()
                    break

    async def _close_motor(self) -> None:
        """Close Motor in a thread: it would block the event loop until the server has answered."""
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def close() -> None:
            self._client.close()
            with suppress(RuntimeError):  # the loop has ended before the server answered
                loop.call_soon_threadsafe(closed.set)

        threading.Thread(target=close, name="leave MongoDB", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await closed.wait()

    async def hello(self) -> Document:
        """Return the server's description of itself; its `localTime` is its clock, tz-aware."""
        return await self._queue_client.admin.command("hello", codec_options=AWARE)

    async def now(self) -> datetime:
        """Return the database's time, never ahead of it: UTC, in milliseconds."""
        return await self._clock(latest=False)

    async def now_at_latest(self) -> datetime:
        """Return the database's time, never behind it: UTC, in milliseconds."""
        return await self._clock(latest=True)

    async def _clock(self, *, latest: bool) -> datetime:
        requested_at = uptime()
        if requested_at - self._clock_read_at >= CLOCK_TRUST_S:
            hello = await self.try_for(WRITE_BUDGET_S, self.hello)
            self._clock_read_at = uptime()
            # The server read its clock at some instant between the request and the answer.
            server_s = hello["localTime"].timestamp()
            self._clock_ahead_s = (
                server_s - self._clock_read_at,
                server_s + MILLISECOND_S - requested_at,
            )
        instant = datetime.fromtimestamp(uptime() + self._clock_ahead_s[latest], UTC)
        return instant.replace(microsecond=instant.microsecond // 1000 * 1000)

    def session(self) -> Session:
        """Begin a session of `queue_db` for commands that belong together. The caller ends it."""
        return self._queue_client.start_session(causal_consistency=False)

    async def in_transaction(self, call: Callable[[Session], Coroutine[Any, Any, None]]) -> None:
        """Run `call` in a transaction; repeat both after a write conflict.

        The driver's `with_transaction` does not serve: it does not repeat a commit whose answer was
        lost.

        Raises:
            StoreUnavailableError: no confirmation within `WRITE_BUDGET_S`. The transaction took
                effect as a whole or not at all.
        """
        session = self._queue_client.start_session()
        try:
            async with asyncio.timeout(WRITE_BUDGET_S):
                async for attempt in _retrying_while_labelled("TransientTransactionError"):
                    with attempt:
                        await self._transact(session, call)
        except TimeoutError as error:
            raise StoreUnavailableError from error
        finally:
            # In a task: leaving the session's context would wait for MongoDB to confirm an abort.
            ending = asyncio.ensure_future(session.end_session())
            self._ending_sessions.add(ending)
            ending.add_done_callback(self._ending_sessions.discard)

    async def _transact(
        self, session: Session, call: Callable[[Session], Coroutine[Any, Any, None]]
    ) -> None:
        await session.start_transaction()
        try:
            await call(session)
        except Exception:
            await session.abort_transaction()
            raise
        async for attempt in _retrying_while_labelled("UnknownTransactionCommitResult"):
            with attempt:
                await session.commit_transaction()

    async def try_for(self, budget_s: float, call: Callable[[], Awaitable[T]]) -> T:
        """Await `call`, and repeat it after transport errors for `budget_s` seconds; 0 for one try.

        Raises:
            StoreUnavailableError: no try succeeded in time, or MongoDB refused the call for a
                lasting reason, which is a defect and is logged as one.
        """
        return await ending_if_cancelled(lambda: self._try_for(budget_s, call))

    async def _try_for(self, budget_s: float, call: Callable[[], Awaitable[T]]) -> T:
        try:
            if not budget_s:
                return await call()
            async with asyncio.timeout(budget_s if budget_s < FOREVER else None):
                try:
                    return await call()
                except (PyMongoError, StoreUnavailableError) as error:
                    if not is_transient(error):
                        raise
                    _log_retry(error, 1)
                return await _repeat(budget_s, call)
        except RetryError as error:
            cause = error.last_attempt.exception()
            raise StoreUnavailableError(type(cause).__name__) from cause
        except TimeoutError as error:
            raise StoreUnavailableError from error
        except PyMongoError as error:
            if is_transient(error):
                raise StoreUnavailableError(type(error).__name__) from error
            log.exception("mongodb_refused")
            details: Any = getattr(error, "details", None) or {}
            raise StoreUnavailableError(details.get("codeName", type(error).__name__)) from error

    async def search(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await a search once. The server ends it after `SEARCH_LIMIT_MS`.

        Raises:
            SearchTooSlowError: the server ended it.
            StoreUnavailableError: as `try_for`.
        """
        try:
            return await self.try_for(0, call)
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, ExecutionTimeout):
                raise SearchTooSlowError from error
            raise


async def ending_if_cancelled(call: Callable[[], Awaitable[T]]) -> T:
    """Await `call`; raise `CancelledError` after it if this task was cancelled meanwhile.

    PyMongo uses `asyncio.wait_for`, which before Python 3.12 loses a cancellation that arrives
    together with the awaited result. The task would go on, and a canceller that waits for its end
    could wait for ever.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        return await call()
    finally:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError


def uptime() -> float:
    """Return seconds since the machine started, including the time in which it was suspended.

    A value that is compared with the database's clock must include that time. `time.monotonic()`
    does not.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _retrying_while_labelled(label: str) -> AsyncRetrying:
    """Repeat while the driver gives its errors this label. The caller limits the time."""
    return AsyncRetrying(
        retry=retry_if_exception(
            lambda error: isinstance(error, PyMongoError) and error.has_error_label(label)
        ),
        wait=wait_random_exponential(multiplier=0.01, max=0.2),
        reraise=True,
    )


async def _repeat(budget_s: float, call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call that has failed once, for `budget_s` seconds.

    The first try does not use tenacity, because its set-up costs as much as a small write.
    """

    def log_retry(state: RetryCallState) -> None:
        _log_retry(state.outcome.exception() if state.outcome else None, 1 + state.attempt_number)

    async for attempt in AsyncRetrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_delay(budget_s),
        wait=wait_random_exponential(multiplier=0.05, max=0.5),
        before_sleep=log_retry,
    ):
        with attempt:
            return await call()
    raise AssertionError  # the loop returns or raises


def _log_retry(error: BaseException | None, tries: int) -> None:
    log.warning("mongodb_unavailable", cause=type(error).__name__, tries=tries)
