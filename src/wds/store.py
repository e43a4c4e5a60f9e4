"""The durable queue and its archive in MongoDB. The only module that talks to it.

Trust: every write is acknowledged by a majority and journaled, so what this module returns
survives any one node. A lost connection leaves a write's outcome unknown; each method says
how it finds out. Transport errors are retried here for a bounded time (tenacity); what then
remains is `StoreUnavailableError`. Retries of deliveries are not this module's: they are due
times in the documents.
"""

from __future__ import annotations

import random
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from bson import CodecOptions
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import ReturnDocument
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    WTimeoutError,
)
from pymongo.read_concern import ReadConcern
from tenacity import (
    AsyncRetrying,
    RetryError,
    retry_if_exception,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from wds import queries
from wds.errors import StandaloneRefusedError, StartError, StoreUnavailableError
from wds.model import Claim, Conflict, NewEvent, Receipt, Settlement, Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from wds.queries import Document

T = TypeVar("T")

log = structlog.get_logger(__name__)

SERVER_SELECTION_TIMEOUT_S = 3.0
SOCKET_TIMEOUT_S = 10.0
WRITE_BUDGET_S = 8.0
"""Seconds that an insert is retried on transport errors before the sender is told 503."""
READ_BUDGET_S = 5.0
SEARCH_TIMEOUT_MS = 10_000
CLOCK_TRUST_S = 5.0
"""Seconds after which the database's clock is looked at again."""
PEEK_FACTOR = 4
"""Due ids looked at for each one leased: replicas that sample do not race for the same head."""
PEEK_LEAST = 16
BACKLOG_CAP = 100_000
"""The due gauge counts no further, so that a huge backlog does not make its own metric slow."""
FORGET_REPLICA_S = 3600.0

# NotWritablePrimary, shutdown, stepdown, failover, network and time-limit codes of
# https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml
_TRANSIENT_CODES = frozenset(
    {6, 7, 50, 64, 89, 91, 100, 112, 133, 189, 202, 262, 9001, 10107, 11600, 11602, 13435, 13436}
)
_DUPLICATE_KEY = 11000
_AWARE: CodecOptions[Document] = CodecOptions(tz_aware=True)
_ALREADY_INITIALIZED = 23


@dataclass(frozen=True, slots=True)
class Claimed:
    """What one claim brought.

    Attributes:
        claims: the leases now held.
        recovered: how many of these had an expired lease, now recorded as an unknown attempt.
        buried: events found with no attempt left; now FAILED_PERMANENTLY.
    """

    claims: list[Claim]
    recovered: int = 0
    buried: int = 0


@dataclass(frozen=True, slots=True)
class Backlog:
    """Due events now (`BACKLOG_CAP` means that or more) and the age of the oldest, seconds."""

    due: int
    oldest_due_s: float


class Store:
    """One process's access to the database. Create, `open`, use, `close`."""

    def __init__(self, url: str, database: str) -> None:
        """Prepare a client; nothing is sent until `open`.

        Raises:
            StartError: the URL is malformed. It is not repeated, it may hold a password.
        """
        try:
            self._client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(
                url,
                tz_aware=True,
                w="majority",
                journal=True,
                wTimeoutMS=int(WRITE_BUDGET_S * 1000),
                retryWrites=True,
                retryReads=True,
                serverSelectionTimeoutMS=int(SERVER_SELECTION_TIMEOUT_S * 1000),
                connectTimeoutMS=int(SERVER_SELECTION_TIMEOUT_S * 1000),
                socketTimeoutMS=int(SOCKET_TIMEOUT_S * 1000),
                readPreference="primary",
                appname="wds",
            )
        except (PyMongoError, ValueError) as error:
            msg = f"WDS_MONGO_URL cannot be used: {type(error).__name__}"
            raise StartError(msg) from error
        self._db = self._client[database]
        self._events = self._db[queries.EVENTS]
        self._fleet = self._db[queries.FLEET]
        self._clock_read_at = -CLOCK_TRUST_S
        self._clock_ahead_s = 0.0

    async def open(self) -> None:
        """Check what kind of server this is and make the indexes, once it answers.

        Raises:
            StandaloneRefusedError: it is no replica set.
            StartError: it refuses this client.
        """
        patiently = AsyncRetrying(
            retry=retry_if_exception_type(StoreUnavailableError),
            wait=wait_random_exponential(multiplier=0.1, max=2),
            before_sleep=lambda _: log.warning(
                "waiting_for_mongodb", hint="is it running, with a primary elected?"
            ),
        )
        try:
            await patiently(self._open_once)
        except OperationFailure as error:
            reason = (error.details or {}).get("codeName", error.code)
            msg = f"MongoDB at WDS_MONGO_URL refuses this client: {reason}"
            raise StartError(msg) from error

    async def _open_once(self) -> None:
        hello = await self._try_for(0, self._hello)
        if "setName" not in hello and hello.get("msg") != "isdbgrid":
            msg = (
                "MongoDB at WDS_MONGO_URL is a standalone server, which can lose acknowledged"
                " events: start mongod with --replSet and run rs.initiate(); one node is enough"
            )
            raise StandaloneRefusedError(msg)
        await self._try_for(0, lambda: self._events.create_indexes(queries.EVENT_INDEXES))

    async def close(self) -> None:
        """Drop all connections."""
        self._client.close()

    async def ping(self) -> None:
        """Return if a primary answers.

        Raises:
            StoreUnavailableError: none does.
        """
        await self._try_for(0, lambda: self._client.admin.command("ping"))

    # -- ingest ----------------------------------------------------------------------------

    async def insert(self, events: Sequence[NewEvent]) -> list[Receipt | Conflict]:
        """Store `events`, one result for each in order, majority-committed and journaled.

        Ids are fixed by the caller, so a write of unknown outcome is simply written again.

        Raises:
            StoreUnavailableError: no confirmation in time. Some may have been stored; sent
                again, those with an idempotency key are recognised.
        """
        now = await self._now()
        documents = [queries.event_document(event, now) for event in events]
        tries = 0

        async def write() -> list[int]:
            nonlocal tries
            tries += 1
            try:
                await self._events.insert_many(documents, ordered=False)
            except BulkWriteError as error:
                return _duplicates(error)
            return []

        repeated = await self._try_for(WRITE_BUDGET_S, write)
        results: list[Receipt | Conflict] = [
            Receipt(event.id, Status.RECEIVED, duplicate=False) for event in events
        ]
        if repeated:
            stored = await self._committed({events[index].id for index in repeated})
            ours = {event.id: index for index, event in reversed(list(enumerate(events)))}
            for index in repeated:
                event = events[index]
                found = stored[event.id]
                # Only a second try can meet a document that the first one wrote.
                mine = tries > 1 and ours[event.id] == index and found["received_at"] == now
                if found["payload_sha256"] != event.payload_sha256:
                    results[index] = Conflict(event.id)
                else:
                    results[index] = Receipt(event.id, Status(found["status"]), not mine)
        return results

    async def conflicts(self, events: Sequence[NewEvent]) -> list[int]:
        """Return the indexes of events whose idempotency key has another payload stored."""
        keyed = {event.id for event in events if event.idempotency_key is not None}
        if not keyed:
            return []
        found = await self._try_for(
            READ_BUDGET_S,
            lambda: self._events.find({"_id": {"$in": list(keyed)}}, {"payload_sha256": 1}).to_list(
                None
            ),
        )
        hashes = {document["_id"]: document["payload_sha256"] for document in found}
        return [
            index
            for index, event in enumerate(events)
            if hashes.get(event.id, event.payload_sha256) != event.payload_sha256
        ]

    async def _committed(self, ids: set[str]) -> dict[str, Document]:
        """Read documents that exist on the primary, once a majority has them.

        A repeat is acknowledged too, so the first write must be durable by then.
        """
        majority = self._events.with_options(read_concern=ReadConcern("majority"))

        async def read() -> dict[str, Document]:
            found = await majority.find(
                {"_id": {"$in": list(ids)}}, {"payload_sha256": 1, "status": 1, "received_at": 1}
            ).to_list(None)
            if len(found) < len(ids):
                raise StoreUnavailableError
            return {document["_id"]: document for document in found}

        return await self._try_for(READ_BUDGET_S, read)

    async def _now(self) -> datetime:
        """Return the database's time, never later than it is; UTC, in milliseconds."""
        now = time.monotonic()
        if now - self._clock_read_at >= CLOCK_TRUST_S:
            hello = await self._try_for(WRITE_BUDGET_S, self._hello)
            now = self._clock_read_at = time.monotonic()
            self._clock_ahead_s = hello["localTime"].timestamp() - now
        instant = datetime.fromtimestamp(now + self._clock_ahead_s, UTC)
        return instant.replace(microsecond=instant.microsecond // 1000 * 1000)

    # -- the lease queue -------------------------------------------------------------------

    async def claim(
        self, destination: str, limit: int, *, owner: str, lease_s: float, max_attempts: int
    ) -> Claimed:
        """Lease up to `limit` due events of `destination`; none due gives an empty result.

        At most one live lease exists per event, by the server's own serialisation of writes
        to one document. If this process never learns of a lease it was given, the lease
        expires and the event is found again.

        Raises:
            StoreUnavailableError: the database did not answer.
        """
        token = secrets.token_hex(8)
        update = queries.claim(token, owner, round(lease_s * 1000), max_attempts)
        trusted_until = time.monotonic() + lease_s
        if limit == 1:
            documents, buried = await self._claim_one(destination, update)
        else:
            documents, buried = await self._claim_many(destination, limit, token, update)
        return Claimed(
            [_claim(document, token, trusted_until) for document in documents],
            sum("recovered" in document["lease"] for document in documents),
            buried,
        )

    async def _claim_one(
        self, destination: str, update: list[Document]
    ) -> tuple[list[Document], int]:
        buried = 0
        while True:
            found = await self._try_for(
                0,
                lambda: self._events.find_one_and_update(
                    queries.due(destination),
                    update,
                    projection=queries.CLAIM_PROJECTION,
                    sort=queries.DUE_ORDER,
                    return_document=ReturnDocument.AFTER,
                ),
            )
            if found is None:
                return [], buried
            if "lease" in found:
                return [found], buried
            buried += 1

    async def _claim_many(
        self, destination: str, limit: int, token: str, update: list[Document]
    ) -> tuple[list[Document], int]:
        due = queries.due(destination)
        peeked = await self._try_for(
            0,
            lambda: (
                self._events.find(due, {"_id": 1})
                .sort(queries.DUE_ORDER)
                .limit(max(limit * PEEK_FACTOR, PEEK_LEAST))
                .to_list(None)
            ),
        )
        if not peeked:
            return [], 0
        ids = [document["_id"] for document in random.sample(peeked, min(limit, len(peeked)))]
        chosen = {"_id": {"$in": ids}}
        try:
            written = await self._events.update_many({**chosen, **due}, update)
            modified = written.modified_count
        except PyMongoError as error:
            if not _transient(error):
                raise
            log.warning("claim_outcome_unknown", error=type(error).__name__, events=len(ids))
            modified = 0
        found = await self._try_for(
            READ_BUDGET_S,
            lambda: self._events.find(
                {**chosen, "lease.token": token}, queries.CLAIM_PROJECTION
            ).to_list(None),
        )
        return found, max(modified - len(found), 0)

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """End claims in one round trip: record the attempt and give the lease back.

        Each write matches its lease token, so a dispatcher that overran its lease changes
        nothing. Returns, in order, False where the lease was lost before the attempt was
        recorded. Retried until the leases themselves are over.

        Raises:
            StoreUnavailableError: no confirmation in time; what was not recorded becomes an
                attempt of unknown outcome when its lease is found expired.
        """
        writes = [queries.settlement(each) for each in settlements]
        budget = max(each.claim.trusted_until for each in settlements) - time.monotonic()
        written = await self._try_for(
            max(budget, 0), lambda: self._events.bulk_write(writes, ordered=False)
        )
        if written.matched_count == len(writes):
            return [True] * len(writes)
        attempted = [each for each in settlements if each.attempt is not None]
        recorded: set[str] = set()
        if attempted:
            found = await self._try_for(
                READ_BUDGET_S,
                lambda: self._events.find(queries.settled(attempted), {"_id": 1}).to_list(None),
            )
            recorded = {document["_id"] for document in found}
        return [each.attempt is None or each.claim.id in recorded for each in settlements]

    # -- operators -------------------------------------------------------------------------

    async def get(self, event_id: str) -> Document | None:
        """Return a whole event, or None."""
        return await self._try_for(READ_BUDGET_S, lambda: self._events.find_one({"_id": event_id}))

    async def page(
        self,
        match: Document,
        *,
        skip: int,
        limit: int,
        after: tuple[datetime, str] | None,
        include_payload: bool,
    ) -> list[Document]:
        """Return matching events, newest first, from `skip` on or from a cursor position."""
        wanted = match if after is None else queries.after(match, *after)
        found = self._events.find(
            wanted, None if include_payload else {"payload": 0}, max_time_ms=SEARCH_TIMEOUT_MS
        )
        ordered = found.sort(queries.PAGE_ORDER).skip(skip).limit(limit)
        return await self._try_for(0, lambda: ordered.to_list(None))

    async def count(self, match: Document) -> int:
        """Count the matching events."""
        return await self._try_for(
            0, lambda: self._events.count_documents(match, maxTimeMS=SEARCH_TIMEOUT_MS)
        )

    async def counts(self, match: Document) -> list[Document]:
        """Count matching events per `{status, event_type, hour}`."""
        found = self._events.aggregate(queries.counts(match), maxTimeMS=SEARCH_TIMEOUT_MS)
        return await self._try_for(0, lambda: found.to_list(None))

    async def backlog(self, destination: str) -> Backlog:
        """Measure what is due now, by the database's clock."""
        due = queries.due(destination)
        hello = await self._try_for(0, self._hello)
        oldest = await self._try_for(
            0,
            lambda: self._events.find_one(
                due, {"_id": 0, "next_attempt_at": 1}, sort=queries.DUE_ORDER
            ),
        )
        if oldest is None:
            return Backlog(0, 0.0)
        count = await self._try_for(
            0, lambda: self._events.count_documents(due, limit=BACKLOG_CAP, hint="claim")
        )
        age: timedelta = hello["localTime"] - oldest["next_attempt_at"]
        return Backlog(count, max(age.total_seconds(), 0.0))

    # -- the fleet -------------------------------------------------------------------------

    async def report(self, *, owner: str, role: str, totals: dict[str, int]) -> None:
        """Write this replica's heartbeat; totals are absolute, so repeating it is harmless."""
        update = queries.heartbeat(
            {"owner": owner, "role": role, "totals": totals}, round(FORGET_REPLICA_S * 1000)
        )
        await self._try_for(
            0, lambda: self._fleet.update_one({"_id": queries.FLEET}, update, upsert=True)
        )

    async def fleet(self) -> Document:
        """Return the fleet document and the database's time as `now`; empty before any report."""
        found = self._fleet.aggregate(queries.fleet_now())
        documents = await self._try_for(0, lambda: found.to_list(1))
        return documents[0] if documents else {}

    async def _hello(self) -> Document:
        """Ask the server about itself; `localTime` in it is its clock, tz-aware."""
        # `command` ignores the client's own codec options.
        return await self._client.admin.command("hello", codec_options=_AWARE)

    # -- transport -------------------------------------------------------------------------

    async def _try_for(self, budget_s: float, call: Callable[[], Awaitable[T]]) -> T:
        """Await `call`, again after a transport error while `budget_s` lasts.

        Raises:
            StoreUnavailableError: the last try failed in transport.
        """
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(_transient),
                stop=stop_after_delay(budget_s),
                wait=wait_random_exponential(multiplier=0.05, max=0.5),
            ):
                with attempt:
                    return await call()
        except RetryError as error:
            cause = error.last_attempt.exception()
            raise StoreUnavailableError(type(cause).__name__) from cause
        raise AssertionError  # the loop returns or raises


async def initiate_replica_set(host: str, port: int, name: str) -> None:
    """Make the mongod at `host:port` a one-node replica set, or give an old one this address.

    Raises:
        StartError: it did not become primary.
    """
    client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(
        host, port, directConnection=True, serverSelectionTimeoutMS=20_000
    )
    config = {"_id": name, "members": [{"_id": 0, "host": f"{host}:{port}"}]}
    try:
        try:
            await client.admin.command("replSetInitiate", config)
        except OperationFailure as error:
            if error.code != _ALREADY_INITIALIZED:
                raise
            await _move_replica_set(client, config)
        async for attempt in AsyncRetrying(
            stop=stop_after_delay(20), wait=wait_random_exponential(multiplier=0.02, max=0.2)
        ):
            with attempt:
                hello = await client.admin.command("hello")
                if not hello.get("isWritablePrimary"):
                    raise StoreUnavailableError
    except (PyMongoError, RetryError) as error:
        msg = f"mongod on port {port} did not become a primary: {error}"
        raise StartError(msg) from error
    finally:
        client.close()


async def _move_replica_set(client: AsyncIOMotorClient[Document], config: Document) -> None:
    """Force the stored configuration to this address: data kept from an earlier port."""
    current = (await client.admin.command("replSetGetConfig"))["config"]
    if current["members"][0]["host"] == config["members"][0]["host"]:
        return
    moved = {**current, "members": config["members"], "version": current["version"] + 1}
    await client.admin.command("replSetReconfig", moved, force=True)


def _claim(document: Document, token: str, trusted_until: float) -> Claim:
    return Claim(
        id=document["_id"],
        token=token,
        attempt_number=document["attempt_count"],
        leased_at=document["lease"]["since"],
        trusted_until=trusted_until,
        destination=document["destination"],
        event_type=document["event_type"],
        content_type=document["content_type"],
        payload=document["payload"],
    )


def _duplicates(error: BulkWriteError) -> list[int]:
    """Return the indexes refused as duplicates; raise on for any other failure in the bulk."""
    details: Any = error.details
    others = [each for each in details["writeErrors"] if each["code"] != _DUPLICATE_KEY]
    if others or details["writeConcernErrors"]:
        raise error
    return [each["index"] for each in details["writeErrors"]]


def _transient(error: BaseException) -> bool:
    """Tell whether the same call may succeed later: transport, failover or time limit."""
    if isinstance(error, (StoreUnavailableError, ConnectionFailure, WTimeoutError)):
        return True
    if isinstance(error, BulkWriteError):
        details: Any = error.details
        codes = {each["code"] for each in details["writeErrors"]} - {_DUPLICATE_KEY}
        return bool(details["writeConcernErrors"]) or bool(codes & _TRANSIENT_CODES)
    if isinstance(error, ExecutionTimeout):
        return True
    return isinstance(error, OperationFailure) and error.code in _TRANSIENT_CODES
