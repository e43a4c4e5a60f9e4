"""Events of many hours, for the tests of rollups."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from tests.integration.storage.event_history import STATUSES, TYPES, put
from wds.domain.deliveries import Status
from wds.storage.rollup_queries import HOUR, hour_of


@pytest.fixture
def now() -> datetime:
    """Return a full hour, some hours ago."""
    return hour_of(datetime.now(UTC)) - 3 * HOUR


@pytest.fixture
async def history(db, now):
    """Store events of 40 hours; those of one hour of the day are live."""
    rng = random.Random(7)
    for _ in range(400):
        at = now - timedelta(seconds=rng.randrange(40 * 3600))
        await put(
            db,
            at,
            Status.DELIVERING if at.hour == 5 else rng.choice(STATUSES),
            rng.choice(TYPES),
            attempt_count=rng.randrange(5),
            **rng.choice([{"last_status_code": 200}, {"last_status_code": 500}, {}]),
            source=rng.choice(["one", "two"]),
            destination=rng.choice(["default", "other"]),
        )
    return await db.events.find().to_list(None)
