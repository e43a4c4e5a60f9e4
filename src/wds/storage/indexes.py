"""Every index of the events, and how a starting process makes them.

Queries name the index that they are read by, so a name is part of a query. The indexes of bulk
actions are in `action_queries`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import OperationFailure

if TYPE_CHECKING:
    from pymongo.asynchronous.collection import AsyncCollection

log = structlog.get_logger(__name__)

CLAIM_INDEX = IndexModel(
    [("destination", ASCENDING), ("next_attempt_at", ASCENDING), ("_id", ASCENDING)],
    name="claim",
    partialFilterExpression={"next_attempt_at": {"$exists": True}},
)
"""Holds live events only, so a claim costs the same however many are finished.

With `_id`, so that looking at what is due and counting it reads no document.
"""

COVERING_INDEX = "search_time"
"""Holds all that is filtered and counted by, so that no document is read."""
STATUS_INDEX = "search_status"
TYPE_INDEX = "search_type"
"""Has each status of a type apart, so that a type with a status it never had costs nothing."""
SOURCE_INDEX = "search_source"
"""Holds nothing that changes, so an event is put into it once."""
CODE_INDEX = "search_code"
"""Holds what `COVERING_INDEX` does, of events with a last status code, each code apart."""
RETRIED = 2
"""Attempts of the events in `ATTEMPTS_INDEX`, at least."""
ATTEMPTS_INDEX = "search_attempts"
"""Holds what `COVERING_INDEX` does, of the few events attempted more than once, by attempts."""
KEY_INDEX = "key"
"""Finds an idempotency key without its source; holds only events that have one."""

_NEWEST_FIRST = [("received_at", DESCENDING), ("_id", DESCENDING)]
_KINDS = [(name, ASCENDING) for name in ("status", "event_type", "source", "destination")]
_CODE = ("last_status_code", ASCENDING)
_COUNTED = [*_KINDS, ("attempt_count", ASCENDING)]
EVENT_INDEXES = [
    CLAIM_INDEX,
    IndexModel([*_NEWEST_FIRST, *_COUNTED, _CODE], name=COVERING_INDEX),
    IndexModel([("status", ASCENDING), *_NEWEST_FIRST], name=STATUS_INDEX),
    IndexModel([("event_type", ASCENDING), ("status", ASCENDING), *_NEWEST_FIRST], name=TYPE_INDEX),
    IndexModel([("source", ASCENDING), *_NEWEST_FIRST], name=SOURCE_INDEX),
    IndexModel(
        [_CODE, *_NEWEST_FIRST, *_COUNTED],
        name=CODE_INDEX,
        partialFilterExpression={"last_status_code": {"$exists": True}},
    ),
    IndexModel(
        [("attempt_count", DESCENDING), *_NEWEST_FIRST, *_KINDS, _CODE],
        name=ATTEMPTS_INDEX,
        partialFilterExpression={"attempt_count": {"$gte": RETRIED}},
    ),
    IndexModel(
        [("idempotency_key", ASCENDING)],
        name=KEY_INDEX,
        partialFilterExpression={"idempotency_key": {"$exists": True}},
    ),
]
OBSOLETE_INDEXES = ("search", "search_retried")
"""What earlier versions had instead; dropped once there is what replaces it."""

RETENTION_INDEX = "retention"
"""Makes MongoDB delete finished events once they are old; exists only while that is wanted."""


def retention_index(after_s: int) -> IndexModel:
    """Return the index by which events go `after_s` seconds after they finished.

    A live event has no `finished_at`, so it is not in the index and never goes.
    """
    return IndexModel(
        [("finished_at", ASCENDING)],
        name=RETENTION_INDEX,
        expireAfterSeconds=after_s,
        partialFilterExpression={"finished_at": {"$exists": True}},
    )


LOGOUTS_INDEX = IndexModel([("forget_at", ASCENDING)], name="forget", expireAfterSeconds=0)

_INDEX_NOT_FOUND = 27


async def make_indexes(events: AsyncCollection[dict[str, Any]]) -> None:
    """Make what is missing, and anew what an earlier version made otherwise under the same name.

    Then drop what is obsolete. Replicas of an earlier version may still ask for that, so what
    replaces it is there first.
    """
    existing = await events.index_information()
    for index in EVENT_INDEXES:
        name, keys = index.document["name"], list(index.document["key"].items())
        if name in existing and existing[name]["key"] != keys:
            log.warning("index_made_anew", index=name)
            await _drop_index(events, name)
    await events.create_indexes(EVENT_INDEXES)
    for name in existing.keys() & set(OBSOLETE_INDEXES):
        log.warning("index_dropped", index=name, consequence="nothing uses it any more")
        await _drop_index(events, name)


async def _drop_index(events: AsyncCollection[dict[str, Any]], name: str) -> None:
    """Drop an index, unless another replica that starts just now was faster."""
    try:
        await events.drop_index(name)
    except OperationFailure as error:
        if error.code != _INDEX_NOT_FOUND:
            raise
