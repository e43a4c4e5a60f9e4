"""Being told that events may be due, for a dispatcher that found none: a change stream.

MongoDB stays the queue, and looking at it what finds events. This only says when to look again, so
whatever it misses or says for nothing costs time, never an event. What must stay true:

* Whoever listens looks once after listening has begun, and again after each `wait`: what became
  due before is found by the look, what becomes due later is told.
* Where there is no telling (no right to it, no answer), looks are as frequent as without.

Format: https://www.mongodb.com/docs/manual/changeStreams/ and
https://www.mongodb.com/docs/manual/reference/command/getMore/. By those commands and not by the
driver's `watch`, which hands out one change at a time: of many that came meanwhile each would ask
for a look of its own.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

import structlog
from pymongo.errors import PyMongoError

from wds.storage import lease_queries
from wds.storage.mongo import AWARE, CLOSE_S, SOCKET_TIMEOUT_S, heeded

if TYPE_CHECKING:
    from wds.storage.lease_queries import Document
    from wds.storage.mongo import MongoDatabase, Session

log = structlog.get_logger(__name__)

STALE_S = 2.0
"""A stream that was not read for so long is begun anew: MongoDB would go through all since then."""
MOST_S = SOCKET_TIMEOUT_S / 2
"""Longest wait for one answer: well before the driver takes it for a broken connection."""
TRY_AGAIN_S = 60.0
"""Seconds after which listening is tried again where it failed."""


class ChangeStream:
    """One process's ear. `wait`, look, and `wait` again; `close`."""

    def __init__(self, mongo: MongoDatabase) -> None:
        """Take the connection to use."""
        self._mongo = mongo
        self._db = mongo.queue_db
        self._session: Session | None = None
        self._cursor = 0
        self._read_at = -math.inf
        self._try_at = -math.inf

    async def wait(self, destination: str, most_s: float) -> bool:
        """Wait until an event of `destination` may have become due, at most `most_s` seconds.

        Returns at once when listening has just begun, and where it cannot: False then, and the
        caller has to look as often as it would alone. Not with a sharded cluster, whose idle
        shards hold back what the others have to tell, for up to ten seconds.
        """
        if self._mongo.sharded or monotonic() < self._try_at:
            return False
        try:
            await self._wait(destination, most_s)
        except PyMongoError as error:
            self._read_at = -math.inf
            self._try_at = monotonic() + TRY_AGAIN_S
            log.warning(
                "cannot_listen",
                cause=_cause(error),
                consequence="looks every WDS_POLL_INTERVAL",
            )
            return False
        return True

    async def close(self) -> None:
        """End listening; a server that does not hear of it forgets the stream in half an hour."""
        if self._cursor:
            with suppress(PyMongoError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._end()
        if self._session is not None:
            await self._session.end_session()

    async def _wait(self, destination: str, most_s: float) -> None:
        if not self._cursor or monotonic() - self._read_at > STALE_S:
            await self._begin()
            return
        found = await self._ask(lease_queries.earliest(destination))
        for event in found["cursor"]["firstBatch"]:
            due_in = event["next_attempt_at"] - await self._mongo.now_at_latest()
            most_s = min(most_s, due_in.total_seconds())
        if most_s > 0:
            await self._read(min(most_s, MOST_S))

    async def _begin(self) -> None:
        if self._session is None:
            self._session = self._mongo.session()
        if self._cursor:
            await self._end()
        self._heed(await self._ask(lease_queries.STREAM))

    async def _end(self) -> None:
        ended = lease_queries.end_stream(self._cursor)
        self._cursor = 0
        await self._ask(ended)

    async def _read(self, most_s: float) -> None:
        question = lease_queries.next_changes(self._cursor, math.ceil(most_s * 1000))
        self._heed(await self._ask(question))

    async def _ask(self, question: Document) -> Document:
        # Each by itself: where one overlooks a cancellation, the next is not asked.
        return await heeded(
            lambda: self._db.command(question, codec_options=AWARE, session=self._session)
        )

    def _heed(self, answer: Document) -> None:
        self._cursor = answer["cursor"]["id"]
        self._read_at = monotonic()


def _cause(error: PyMongoError) -> str:
    """Return MongoDB's name for an error or, without one, that of the driver's public class."""
    details: Any = getattr(error, "details", None) or {}
    public = (each.__name__ for each in type(error).__mro__ if not each.__name__.startswith("_"))
    return details.get("codeName") or next(public)
