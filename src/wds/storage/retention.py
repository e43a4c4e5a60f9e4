"""The retention period of finished events: a TTL index, by which MongoDB itself deletes them.

One thread of the primary deletes, so replicas have nothing to agree on. It checks each event again
as it deletes it: an event that was replayed meanwhile has no `finished_at` and stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from pymongo.errors import OperationFailure

from wds.storage.collection_names import EVENTS
from wds.storage.indexes import RETENTION_INDEX, retention_index
from wds.storage.mongo import FOREVER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from wds.storage.mongo import MongoDatabase

log = structlog.get_logger(__name__)

DAY_S = 24 * 3600
# https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml
_NO_SUCH_COLLECTION, _NO_SUCH_INDEX, _OTHER_OPTIONS = 26, 27, 85


async def apply(
    mongo: MongoDatabase, after_s: int | None, on_change: Callable[[], Awaitable[None]]
) -> None:
    """Set the retention period to `after_s` seconds; None keeps finished events for ever.

    Any number of processes may do this at once; if they differ, the last one decides. `on_change`
    is awaited before and after a change, and not at all if the period is set already.
    """
    if await mongo.try_for(FOREVER, lambda: _current(mongo)) == after_s:
        return
    await on_change()
    await mongo.try_for(FOREVER, lambda: _apply(mongo, after_s))
    await on_change()
    log.info("retention_changed", days=None if after_s is None else after_s / DAY_S)


async def _current(mongo: MongoDatabase) -> int | None:
    """Return the retention period that is set now, in seconds; None if there is none."""
    indexes = await mongo.db[EVENTS].index_information()
    index = indexes.get(RETENTION_INDEX)
    return None if index is None else int(index["expireAfterSeconds"])


async def _apply(mongo: MongoDatabase, after_s: int | None) -> None:
    events = mongo.db[EVENTS]
    while True:
        try:
            if after_s is None:
                await events.drop_index(RETENTION_INDEX)
            else:
                await events.create_indexes([retention_index(after_s)])
        except OperationFailure as error:
            if after_s is None and error.code in {_NO_SUCH_INDEX, _NO_SUCH_COLLECTION}:
                return
            if after_s is None or error.code != _OTHER_OPTIONS:
                raise
            if not await _change(mongo, after_s):
                continue  # another process has dropped it meanwhile
        return


async def _change(mongo: MongoDatabase, after_s: int) -> bool:
    """Change the period of the existing index; False if the index no longer exists."""
    index = {"name": RETENTION_INDEX, "expireAfterSeconds": after_s}
    try:
        await mongo.db.command("collMod", EVENTS, index=index)
    except OperationFailure as error:
        if error.code != _NO_SUCH_INDEX:
            raise
        return False
    return True
