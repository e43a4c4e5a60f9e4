"""Pages of events in the spans that rollups name are those of a model in Python."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from tests.integration.storage.event_history import (
    draw_filters,
    in_order,
    matches,
    store_counts,
)
from wds.domain.event_filter import SORTS, EventFilter
from wds.storage import event_queries, event_reader, rollups
from wds.storage.event_queries import match
from wds.storage.rollup_queries import HOUR


@pytest.mark.parametrize("few", [0, 200])
async def test_page_is_the_same_however_much_the_rollups_store(
    store, now, history, few, monkeypatch
):
    """In every order and after any number of events, with and without spans from the rollups."""
    monkeypatch.setattr(rollups, "HOURS_AT_ONCE", (2, 5))
    monkeypatch.setattr(event_reader, "SPANS_AT_ONCE", 3)
    monkeypatch.setattr(event_reader, "FEW", few)
    rng = random.Random(9)

    async def check() -> None:
        for _ in range(60):
            filters, sort = draw_filters(rng, now), rng.choice(list(SORTS))
            ordered = in_order([each for each in history if matches(each, filters)], sort)
            by_id = {each["_id"]: each for each in history}
            expected = [by_id[each] for each in ordered]
            skip = rng.choice([0, 0, 3, 30])
            after = None
            if expected and rng.random() < 0.5:
                place = rng.randrange(len(expected))
                after = event_queries.position_of(expected[place])
                expected = expected[place + 1 :]
            page, more = await store.reader.page(
                match(EventFilter(**filters)),
                sort=sort,
                skip=skip,
                limit=20,
                after=after,
                include_payload=False,
            )
            ids = [each["_id"] for each in expected]
            assert [each["_id"] for each in page] == ids[skip : skip + 20], (filters, sort, skip)
            assert more == (len(ids) > skip + 20)

    await check()
    await store_counts(store, now)
    await check()
    await store.rollups.advance()
    await check()


def _every(rng, store, now) -> list:
    """List what other replicas may do to the rollups between two reads of one replica."""

    async def extend() -> None:
        last = rng.randrange(41)
        horizon = now - timedelta(minutes=rng.randrange(40 * 60))
        batch = [now - n * HOUR for n in range(40, last, -1) if now - n * HOUR < horizon]
        if batch:
            await store.rollups._extend(batch, horizon)

    async def reopen() -> None:
        await store.rollups.reopen([now - n * HOUR for n in range(41) if rng.random() < 0.5])

    async def find_too_many_kinds() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rollups, "MAX_KINDS", 2)
            await extend()

    return [extend, extend, reopen, find_too_many_kinds, store.rollups.forget]


@pytest.mark.parametrize("few", [0, 200])
async def test_pages_and_totals_agree_with_a_model_while_rollups_change(
    store, now, history, few, monkeypatch
):
    """All pages of a search, in any size and order."""
    monkeypatch.setattr(rollups, "HOURS_AT_ONCE", (2, 5))
    monkeypatch.setattr(event_reader, "SPANS_AT_ONCE", 3)
    monkeypatch.setattr(event_reader, "FEW", few)
    rng = random.Random(10)
    choices = _every(rng, store, now)
    some_time_ago = {"$set": {"reopened_at": now - HOUR}}
    kept_in = store.rollups._counted_hours

    async def kept_in_and_changed(*span, **order):
        kept = await kept_in(*span, **order)
        if rng.random() < 0.3:
            await rng.choice(choices)()
        return kept

    monkeypatch.setattr(store.rollups, "_counted_hours", kept_in_and_changed)
    for _ in range(40):
        await store.rollups._hours.update_many({}, some_time_ago)
        await choices[0]()
        filters, sort = draw_filters(rng, now), rng.choice(list(SORTS))
        expected = in_order([each for each in history if matches(each, filters)], sort)
        query = match(EventFilter(**filters))
        limit = rng.choice([7, 20, 500])
        read, after, more = [], None, True
        while more:
            page, more = await store.reader.page(
                query, sort=sort, skip=0, limit=limit, after=after, include_payload=False
            )
            read += [each["_id"] for each in page]
            after = event_queries.position_of(page[-1]) if page else None
        assert read == expected, (filters, sort, limit)
        assert await store.rollups.total(query) == len(expected), filters


@pytest.mark.parametrize("sort", ["attempt_count", "-attempt_count"])
async def test_page_by_attempts_loses_no_event_while_others_change(
    store, db, history, sort, monkeypatch
):
    """One is deleted and two are attempted once more, after their sort keys were read."""
    read_sorted = store.reader._read_sorted
    changed: set[str] = set()

    async def read_after_a_change(keys, part, window):
        if not changed:
            gone, first, last = keys[3]["_id"], keys[0]["_id"], keys[-1]["_id"]
            changed.update({gone, first, last})
            await db.events.delete_one({"_id": gone})
            await db.events.update_many(
                {"_id": {"$in": [first, last]}}, {"$inc": {"attempt_count": 1}}
            )
        return await read_sorted(keys, part, window)

    monkeypatch.setattr(store.reader, "_read_sorted", read_after_a_change)
    read, after, more = [], None, True
    while more:
        page, more = await store.reader.page(
            match(EventFilter()),
            sort=sort,
            skip=0,
            limit=20,
            after=after,
            include_payload=False,
        )
        read += [each["_id"] for each in page]
        after = event_queries.position_of(page[-1]) if page else None
    others = [event_id for event_id in read if event_id not in changed]
    assert others == [each for each in in_order(history, sort) if each not in changed]
    assert len(read) == len(set(read))


async def test_spans_leave_out_counted_hours_without_a_matching_event(store, db, history):
    """Otherwise a search without matches would read all events."""
    await db.events.update_many({"status": "DELIVERING"}, {"$set": {"status": "DELIVERED"}})
    await store.rollups.advance()
    query = match(EventFilter(source=["one"], destination=["none"]))
    found = [spans async for spans, _ in store.rollups.spans(query, newest_first=True)]
    assert len(found) == 1
    received = [each["received_at"] for each in history]
    assert not [at for at in received for begin, end in found[0] if begin <= at < end]
