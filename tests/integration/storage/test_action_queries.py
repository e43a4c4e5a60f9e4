"""MongoDB and Python agree on which events can be replayed or cancelled."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product

import pytest

from wds.domain.operator_actions import Action, obstacle
from wds.storage import action_queries

NOW = datetime(2026, 3, 1, tzinfo=UTC)
OPTIONAL = {
    "next_attempt_at": [None, NOW],
    "lease": [None, {"token": "t"}],
    "cancelling": [None, True],
    "attempts_before": [None, 0, 1, 2],
    "attempt_count": [0, 1, 2, 3],
}
"""Field of a stored event -> its values; None leaves the field out."""


@pytest.mark.parametrize("action", Action)
async def test_possible_matches_the_events_without_an_obstacle_in_every_state(db, action):
    events = [
        {name: value for name, value in zip(OPTIONAL, values, strict=True) if value is not None}
        for values in product(*OPTIONAL.values())
    ]
    await db.events.insert_many([{"_id": number, **each} for number, each in enumerate(events)])
    found = await db.events.distinct("_id", action_queries.possible(action))
    expected = [number for number, each in enumerate(events) if obstacle(action, each) is None]

    assert sorted(found) == expected
    assert 0 < len(expected) < len(events)
