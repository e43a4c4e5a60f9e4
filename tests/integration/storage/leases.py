"""Steps of the tests of the lease queue: claim, settlements, expiry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support import clock_caught_up
from wds.domain.deliveries import Attempt, Outcome, Settlement, Status

if TYPE_CHECKING:
    from wds.storage.store import Store


async def claim(store: Store, limit: int = 1, *, lease_s: float = 30, owner: str = "d1", most=5):
    await clock_caught_up(store)
    claimed = await store.queue.claim(
        "default", limit, owner=owner, lease_s=lease_s, max_attempts=most
    )
    return claimed.claims


def attempt_of(claim, outcome: Outcome = Outcome.SUCCESS, response: str | None = "ok") -> Attempt:
    failed = outcome is Outcome.FAILURE
    return Attempt(
        attempt_number=claim.attempt_number,
        timestamp=claim.leased_at,
        outcome=outcome,
        status_code=500 if failed else 200,
        duration_ms=3,
        error="HTTP 500" if failed else None,
        response=response,
    )


def delivered(claim) -> Settlement:
    return Settlement(claim, attempt_of(claim), Status.DELIVERED)


def failed(claim, delay_s: float) -> Settlement:
    return Settlement(claim, attempt_of(claim, Outcome.FAILURE), Status.DELIVERING, delay_s)


async def only(db):
    [document] = await db.events.find().to_list(None)
    return document


async def expire(db) -> None:
    """Make every lease expire now, by the database's clock."""
    await db.events.update_many(
        {"lease": {"$exists": True}}, [{"$set": {"next_attempt_at": {"$subtract": ["$$NOW", 1]}}}]
    )
