"""The connection to MongoDB: what it must promise, how long to be patient, whose clock counts.

Every write through it is acknowledged by a majority and journaled. Transport errors are
retried for a bounded time (tenacity); what then remains is `StoreUnavailableError`. A
standalone server is refused: it has no majority, and it can lose what it acknowledged.
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
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    WTimeoutError,
)
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

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from tenacity import RetryCallState

    from wds.storage.lease_queries import Document

T = TypeVar("T")
Session = AsyncClientSession

log = structlog.get_logger(__name__)

SERVER_SELECTION_TIMEOUT_S = 3.0
SOCKET_TIMEOUT_S = 10.0
SEARCH_LIMIT_MS = 8_000
"""Milliseconds after which the server ends a search. Well before the socket gives up on it: the
driver would then take that for a broken connection and have the server do it all once more."""
HEARTBEAT_S = 2.0
"""Seconds between the driver's looks at each server; its default, 10, finds a primary late."""
WRITE_BUDGET_S = 8.0
"""Seconds that an insert is retried on transport errors before the sender is told 503."""
CLOSE_S = 0.2
"""Seconds that each step of taking leave of the server may take."""
FOREVER = float("inf")
MILLISECOND_S = 0.001
CLOCK_TRUST_S = 5.0
"""Seconds after which the database's clock is looked at again."""

DUPLICATE_KEY = 11000
# NotWritablePrimary, shutdown, stepdown, failover, lost cursor, network and time-limit codes of
# https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml
_TRANSIENT_CODES = frozenset(
    {
        6,
        7,
        43,
        50,
        64,
        89,
        91,
        100,
        112,
        133,
        189,
        202,
        262,
        9001,
        10107,
        11600,
        11602,
        13435,
        13436,
    }
)
AWARE: CodecOptions[Document] = CodecOptions(tz_aware=True)
"""For `command`, which ignores the client's own."""


class MongoDatabase:
    """One database, by two clients of the one driver.

    Attributes:
        db: by Motor, which hands each call to a thread. For what operators ask.
        queue_db: by PyMongo's own asyncio client, which stays on the event loop. For what moves
            events: threads that take turns at the interpreter cost each event a quarter more.
        sharded: whether a `mongos` answers, of a sharded cluster; known once open.
    """

    def __init__(self, url: str, database: str) -> None:
        """Prepare the clients; nothing is sent until `open`.

        Raises:
            StartError: the URL is malformed. It is not repeated, it may hold a password.
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
        self._endings: set[asyncio.Future[None]] = set()
        self._clock_read_at = -CLOCK_TRUST_S
        self._clock_ahead_s = (0.0, 0.0)

    async def open(self) -> None:
        """Check what kind of server this is, once it answers.

        Raises:
            StandaloneRefusedError: it is no replica set.
            StartError: it refuses this client.
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
        """Drop all connections, once transactions are ended and sessions returned, if that is soon.

        A server that hangs does not hear of it; it ends them by itself.
        """
        await asyncio.gather(self._close_motor(), self._close_queue_client())

    async def _close_queue_client(self) -> None:
        # It takes leave of sessions, then of cursors; at another try of none that it has tried.
        for _ in range(3):
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await asyncio.gather(*self._endings, return_exceptions=True)
                    await self._queue_client.close()
                    break

    async def _close_motor(self) -> None:
        """Close the client that would stop the event loop until the server has answered."""
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def close() -> None:
            self._client.close()
            with suppress(RuntimeError):  # nobody waited so long, and the loop is over
                loop.call_soon_threadsafe(closed.set)

        threading.Thread(target=close, name="leave MongoDB", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await closed.wait()

    async def hello(self) -> Document:
        """Ask the server about itself; `localTime` in it is its clock, tz-aware."""
        return await self._queue_client.admin.command("hello", codec_options=AWARE)

    async def now(self) -> datetime:
        """Return the database's time, never later than it is; UTC, in milliseconds."""
        return await self._reading(latest=False)

    async def now_at_latest(self) -> datetime:
        """Return the database's time, never earlier than it is; UTC, in milliseconds."""
        return await self._reading(latest=True)

    async def _reading(self, *, latest: bool) -> datetime:
        asked = uptime()
        if asked - self._clock_read_at >= CLOCK_TRUST_S:
            hello = await self.try_for(WRITE_BUDGET_S, self.hello)
            self._clock_read_at = uptime()
            # It was read at some instant between the question and the answer.
            shown = hello["localTime"].timestamp()
            self._clock_ahead_s = shown - self._clock_read_at, shown + MILLISECOND_S - asked
        instant = datetime.fromtimestamp(uptime() + self._clock_ahead_s[latest], UTC)
        return instant.replace(microsecond=instant.microsecond // 1000 * 1000)

    def session(self) -> Session:
        """Begin a session of `queue_db`'s client, for commands that belong together; end it."""
        return self._queue_client.start_session(causal_consistency=False)

    async def in_transaction(self, call: Callable[[Session], Coroutine[Any, Any, None]]) -> None:
        """Run `call` in a transaction; again from the start after a conflict of writes.

        Not by the driver's `with_transaction`: it does not repeat a commit whose answer was lost.

        Raises:
            StoreUnavailableError: not confirmed within `WRITE_BUDGET_S`; done whole or not at all.
        """
        session = self._queue_client.start_session()
        try:
            async with asyncio.timeout(WRITE_BUDGET_S):
                async for attempt in _while_labelled("TransientTransactionError"):
                    with attempt:
                        await self._transact(session, call)
        except TimeoutError as error:
            raise StoreUnavailableError from error
        finally:
            # Not by leaving a context, which waits to abort what is open until MongoDB answers.
            ending = asyncio.ensure_future(session.end_session())
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)

    async def _transact(
        self, session: Session, call: Callable[[Session], Coroutine[Any, Any, None]]
    ) -> None:
        await session.start_transaction()
        try:
            await call(session)
        except Exception:
            await session.abort_transaction()
            raise
        async for attempt in _while_labelled("UnknownTransactionCommitResult"):
            with attempt:
                await session.commit_transaction()

    async def try_for(self, budget_s: float, call: Callable[[], Awaitable[T]]) -> T:
        """Await `call`, again after a transport error while `budget_s` lasts; 0 for one try.

        Raises:
            StoreUnavailableError: no try succeeded in time, or MongoDB refused the call for a
                reason that time does not mend, which is logged as the defect it is.
        """
        return await heeded(lambda: self._try_for(budget_s, call))

    async def _try_for(self, budget_s: float, call: Callable[[], Awaitable[T]]) -> T:
        try:
            if not budget_s:
                return await call()
            async with asyncio.timeout(budget_s if budget_s < FOREVER else None):
                try:
                    return await call()
                except (PyMongoError, StoreUnavailableError) as error:
                    if not transient(error):
                        raise
                    _log_retry(error, 1)
                return await _again(budget_s, call)
        except RetryError as error:
            cause = error.last_attempt.exception()
            raise StoreUnavailableError(type(cause).__name__) from cause
        except TimeoutError as error:
            raise StoreUnavailableError from error
        except PyMongoError as error:
            if transient(error):
                raise StoreUnavailableError(type(error).__name__) from error
            log.exception("mongodb_refused")
            details: Any = getattr(error, "details", None) or {}
            raise StoreUnavailableError(details.get("codeName", type(error).__name__)) from error

    async def search(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await, once, a search that the server ends at a time limit.

        Raises:
            SearchTooSlowError: it did.
            StoreUnavailableError: as `try_for`.
        """
        try:
            return await self.try_for(0, call)
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, ExecutionTimeout):
                raise SearchTooSlowError from error
            raise


async def heeded(call: Callable[[], Awaitable[T]]) -> T:
    """Await `call`; if this task was cancelled meanwhile, it ends as cancelled.

    PyMongo waits by `asyncio.wait_for`, which before Python 3.12 overlooks a cancellation that
    comes together with what it waits for. The task would go on, and whoever cancelled it and
    waits for its end might wait for ever.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        return await call()
    finally:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError


def duplicates(error: BulkWriteError) -> list[int]:
    """Return the indexes refused as duplicates; raise on for any other failure in the bulk."""
    details: Any = error.details
    others = [each for each in details["writeErrors"] if each["code"] != DUPLICATE_KEY]
    if others or details["writeConcernErrors"]:
        raise error
    return [each["index"] for each in details["writeErrors"]]


def uptime() -> float:
    """Return seconds since the machine started, those it was suspended for included.

    What is compared with the database's clock has to count those; `time.monotonic()` does not.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _while_labelled(label: str) -> AsyncRetrying:
    """Repeat for as long as the driver labels the error so; the caller bounds the time."""
    return AsyncRetrying(
        retry=retry_if_exception(
            lambda error: isinstance(error, PyMongoError) and error.has_error_label(label)
        ),
        wait=wait_random_exponential(multiplier=0.01, max=0.2),
        reraise=True,
    )


async def _again(budget_s: float, call: Callable[[], Awaitable[T]]) -> T:
    """Await `call` again after it failed once, and again.

    The first time goes without tenacity, whose preparations cost as much as a small write.
    """

    def log_retry(state: RetryCallState) -> None:
        _log_retry(state.outcome.exception() if state.outcome else None, 1 + state.attempt_number)

    async for attempt in AsyncRetrying(
        retry=retry_if_exception(transient),
        stop=stop_after_delay(budget_s),
        wait=wait_random_exponential(multiplier=0.05, max=0.5),
        before_sleep=log_retry,
    ):
        with attempt:
            return await call()
    raise AssertionError  # the loop returns or raises


def _log_retry(error: BaseException | None, tries: int) -> None:
    log.warning("mongodb_unavailable", cause=type(error).__name__, tries=tries)


def transient(error: BaseException) -> bool:
    """Tell whether the same call may succeed later: transport, failover or time limit."""
    if isinstance(error, SearchTooSlowError):
        return False
    if isinstance(error, (StoreUnavailableError, ConnectionFailure, WTimeoutError)):
        return True
    if isinstance(error, BulkWriteError):
        details: Any = error.details
        codes = {each["code"] for each in details["writeErrors"]} - {DUPLICATE_KEY}
        return bool(details["writeConcernErrors"]) or bool(codes & _TRANSIENT_CODES)
    if isinstance(error, ExecutionTimeout):
        return True
    return isinstance(error, OperationFailure) and error.code in _TRANSIENT_CODES
