"""Every index of the events, and how a starting process makes them.

Queries name the index that they use, so its name is part of the query. The indexes of bulk actions
are in `action_queries`.
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
"""Live events by due time. Finished ones are not in it, so they do not slow a claim.

It ends with `_id`, so that reading and counting due events reads no document.
"""

COVERING_INDEX = "search_time"
"""All fields that searches filter and count by, so that they read no document."""
STATUS_INDEX = "search_status"
TYPE_INDEX = "search_type"
"""By type, then status: a search for a type in a status that it never had reads no key."""
SOURCE_INDEX = "search_source"
"""Only fields that never change, so an event is entered once."""
CODE_INDEX = "search_code"
"""The fields of `COVERING_INDEX` by last status code; only events that have one."""
RETRIED = 2
"""Minimum number of attempts of the events in `ATTEMPTS_INDEX`."""
ATTEMPTS_INDEX = "search_attempts"
"""The fields of `COVERING_INDEX` by number of attempts; only events attempted more than once."""
KEY_INDEX = "key"
"""Finds an idempotency key without its source; only events that have one."""

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
"""Indexes of earlier versions; dropped once the indexes that replace them exist."""

RETENTION_INDEX = "retention"
"""The TTL index that deletes old finished events; exists only while a retention period is set."""


def retention_index(after_s: int) -> IndexModel:
    """Return the index by which MongoDB deletes events `after_s` seconds after they finished.

    A live event has no `finished_at`, so it is not in the index and is never deleted.
    """
    return IndexModel(
        [("finished_at", ASCENDING)],
        name=RETENTION_INDEX,
        expireAfterSeconds=after_s,
        partialFilterExpression={"finished_at": {"$exists": True}},
    )


LOGOUTS_INDEX = IndexModel([("forget_at", ASCENDING)], name="forget", expireAfterSeconds=0)
"""Deletes the digest of an ended session at the time that is stored with it."""

_INDEX_NOT_FOUND = 27


async def make_indexes(events: AsyncCollection[dict[str, Any]]) -> None:
    """Make missing indexes, replace those that an earlier version made with other keys.

    Then drop obsolete ones: last, because replicas of an earlier version may still use them, and
    find the new ones in their place.
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
    """Drop an index; no error if another starting replica has dropped it first."""
    try:
        await events.drop_index(name)
    except OperationFailure as error:
        if error.code != _INDEX_NOT_FOUND:
            raise
