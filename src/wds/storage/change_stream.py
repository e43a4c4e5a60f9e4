"""Notification that events may be due, from a change stream of MongoDB.

The queue decides what is due; a notification only says when to poll it. A notification that is
missed, or that comes although nothing is due, costs time, never an event. What must stay true:

* A caller polls once after listening has begun, and again after each `wait`. The first poll finds
  what became due before; what becomes due later is notified.
* Where change streams are unavailable (no privilege, no answer), the caller polls as often as
  without them.

Formats: https://www.mongodb.com/docs/manual/changeStreams/ and
https://www.mongodb.com/docs/manual/reference/command/getMore/. This module sends those commands
itself instead of using the driver's `watch`, which returns one change at a time: each of many
changes would ask for a poll of its own.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any

import structlog
from pymongo.errors import PyMongoError

from wds.storage.collection_names import EVENTS
from wds.storage.lease_queries import DUE_ORDER, due_at
from wds.storage.mongo import AWARE, CLOSE_S, SOCKET_TIMEOUT_S, ending_if_cancelled

if TYPE_CHECKING:
    from wds.storage.mongo import Command, Document, MongoDatabase, Session

log = structlog.get_logger(__name__)

STALE_S = 2.0
"""A stream that was not read for this long is replaced: MongoDB would go through all changes
since."""
MAX_READ_S = SOCKET_TIMEOUT_S / 2
"""Longest wait for one answer, well before the driver takes the connection for broken."""
RETRY_S = 60.0
"""Seconds until the next attempt to listen after one failed."""

_END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC)

BEGIN_STREAM: Command = {
    "aggregate": EVENTS,
    "pipeline": [
        {"$changeStream": {}},
        {
            "$match": {
                "$or": [
                    {"operationType": "insert"},
                    {
                        "updateDescription.updatedFields.next_attempt_at": {"$exists": True},
                        "updateDescription.updatedFields.lease": {"$exists": False},
                    },
                ]
            }
        },
        {"$project": {"_id": 1}},
    ],
    "cursor": {},
}
"""Begin a change stream of new events, retries, replays and deferred events.

Claims are left out: they set `lease` together with `next_attempt_at`. Some claims that take over an
expired lease are notified all the same, because only parts of `lease` change.
"""


def next_changes(cursor: int, max_ms: int) -> Command:
    """Return the command that waits up to `max_ms` milliseconds for the next changes."""
    return {"getMore": cursor, "collection": EVENTS, "maxTimeMS": max_ms}


def end_stream(cursor: int) -> Command:
    """Return the command that ends a stream. It also succeeds if the stream does not exist."""
    return {"killCursors": EVENTS, "cursors": [cursor]}


def earliest_due(destination: str) -> Command:
    """Return the command that reads the earliest due time of the live events of `destination`."""
    return {
        "find": EVENTS,
        "filter": due_at(destination, _END_OF_TIME),
        "projection": {"_id": 0, "next_attempt_at": 1},
        "sort": dict(DUE_ORDER),
        "limit": 1,
        "singleBatch": True,
    }


class ChangeStream:
    """One process's change stream: `wait`, poll the queue, `wait` again; then `close`."""

    def __init__(self, mongo: MongoDatabase) -> None:
        """Use an open connection. The stream begins with the first `wait`."""
        self._mongo = mongo
        self._db = mongo.queue_db
        self._session: Session | None = None
        self._cursor = 0
        self._read_at = -math.inf
        self._retry_at = -math.inf

    async def wait(self, destination: str, max_s: float) -> bool:
        """Block until an event of `destination` may have become due, for up to `max_s` seconds.

        True if it waited, or returned at once because listening has just begun. False, at once, if
        it cannot listen: the caller polls at its own interval. A sharded cluster is not listened
        to: it holds back a change for up to ten seconds, until the other shards have had one.
        """
        if self._mongo.sharded or monotonic() < self._retry_at:
            return False
        try:
            await self._wait(destination, max_s)
        except PyMongoError as error:
            self._read_at = -math.inf
            self._retry_at = monotonic() + RETRY_S
            log.warning(
                "cannot_listen",
                cause=_cause(error),
                consequence="polls every WDS_POLL_INTERVAL",
            )
            return False
        return True

    async def close(self) -> None:
        """End the stream. A server that does not receive this ends it after half an hour."""
        if self._cursor:
            with suppress(PyMongoError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._end()
        if self._session is not None:
            await self._session.end_session()

    async def _wait(self, destination: str, max_s: float) -> None:
        if not self._cursor or monotonic() - self._read_at > STALE_S:
            await self._begin()
            return
        found = await self._run(earliest_due(destination))
        for event in found["cursor"]["firstBatch"]:
            due_in = event["next_attempt_at"] - await self._mongo.now_at_latest()
            max_s = min(max_s, due_in.total_seconds())
        if max_s > 0:
            await self._read(min(max_s, MAX_READ_S))

    async def _begin(self) -> None:
        if self._session is None:
            self._session = self._mongo.session()
        if self._cursor:
            await self._end()
        self._keep_cursor(await self._run(BEGIN_STREAM))

    async def _end(self) -> None:
        command = end_stream(self._cursor)
        self._cursor = 0
        await self._run(command)

    async def _read(self, max_s: float) -> None:
        command = next_changes(self._cursor, math.ceil(max_s * 1000))
        self._keep_cursor(await self._run(command))

    async def _run(self, command: Command) -> Document:
        # Checked after each command: if the driver swallows a cancellation, the next is not sent.
        return await ending_if_cancelled(
            lambda: self._db.command(command, codec_options=AWARE, session=self._session)
        )

    def _keep_cursor(self, answer: Document) -> None:
        self._cursor = answer["cursor"]["id"]
        self._read_at = monotonic()


def _cause(error: PyMongoError) -> str:
    """Return MongoDB's name for an error or, without one, that of the driver's public class."""
    details: Any = getattr(error, "details", None) or {}
    public = (each.__name__ for each in type(error).__mro__ if not each.__name__.startswith("_"))
    return details.get("codeName") or next(public)
