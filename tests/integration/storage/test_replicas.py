"""The report of all replicas on a real MongoDB."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


async def test_report_retires_the_totals_of_silent_replicas(store, db):
    await store.replicas.report(owner="a", role="ingest", totals={"events_received": 5})
    await store.replicas.report(owner="b", role="dispatcher", totals={"events_received": 0})
    await store.replicas.report(owner="a", role="ingest", totals={"events_received": 7})
    fleet = await store.replicas.fleet()
    assert {each["owner"]: each["totals"]["events_received"] for each in fleet["replicas"]} == {
        "a": 7,
        "b": 0,
    }
    await db.fleet.update_one(
        {},
        {"$set": {"replicas.$[a].seen_at": datetime(2020, 1, 1, tzinfo=UTC)}},
        array_filters=[{"a.owner": "a"}],
    )
    report = await store.replicas.report(
        owner="b", role="dispatcher", totals={"events_received": 1}
    )
    fleet = await store.replicas.fleet()
    assert report["replicas"] == fleet["replicas"] and report["retired"] == fleet["retired"]
    assert timedelta() <= fleet["now"] - report["now"] < timedelta(seconds=5)
    assert [each["owner"] for each in fleet["replicas"]] == ["b"]
    assert fleet["retired"] == {"events_received": 7}


async def test_report_of_a_replica_retired_too_early_is_not_counted_twice(store, db):
    """As after an hour without MongoDB: the first to report retires all others."""
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    for owner, count in (("a", 100), ("b", 50)):
        await store.replicas.report(owner=owner, role="ingest", totals={"events_received": count})
    await db.fleet.update_one({}, {"$set": {"replicas.$[].seen_at": long_ago}})
    for owner, count in (("a", 101), ("b", 52)):
        await store.replicas.report(owner=owner, role="ingest", totals={"events_received": count})
    fleet = await store.replicas.fleet()
    own = sum(each["totals"]["events_received"] for each in fleet["replicas"])
    assert own + fleet["retired"]["events_received"] == 153
