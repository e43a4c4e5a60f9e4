"""Kept counts on a real database: always what counting all events would give."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from tests.support import new_event
from wds.console import histogram
from wds.domain.deliveries import Status
from wds.domain.operator_actions import Action, Instruction
from wds.storage import event_documents, event_queries, event_reader, rollups
from wds.storage.rollup_queries import HOUR, start_of

STATUSES = [Status.DELIVERED, Status.DELIVERED, Status.FAILED_PERMANENTLY]
TYPES = ["a", "b", None]


@pytest.fixture
def now() -> datetime:
    """Return a full hour, some hours ago."""
    return start_of(datetime.now(UTC)) - 3 * HOUR


async def put(
    db,
    at: datetime,
    status: Status = Status.DELIVERED,
    kind: str | None = "a",
    **more: object,
) -> str:
    """Store an event as if it had been received at `at`."""
    document = event_documents.event_document(new_event(event_type=kind), at)
    document |= {"status": status, "attempt_count": 1, **more}
    if status not in (Status.RECEIVED, Status.DELIVERING):
        del document["next_attempt_at"]
    await db.events.insert_one(document)
    return document["_id"]


async def total(store, **given) -> int:
    wanted = event_queries.match(**given)
    counts = await store.rollups.counts(wanted)
    sums = {await store.rollups.total(wanted)}
    sums |= {sum(each["count"] for each in counts[name]) for name in counts}
    assert len(sums) == 1, counts
    return sums.pop()


async def kept_alone(store, db) -> int:
    """Return what is counted when the events are gone: that part was kept."""
    events = await db.events.find().to_list(None)
    await db.events.delete_many({})
    try:
        return await total(store)
    finally:
        if events:
            await db.events.insert_many(events)


@pytest.fixture
async def history(db, now):
    """Store events of 40 hours; those of one hour a day are live still."""
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


CHOICES = {
    "status": [("DELIVERED",), ("DELIVERED", "DELIVERING")],
    "event_type": [("a",), ("a", "b")],
    "source": [("one",), ("one", "none")],
    "destination": [("other",)],
    "last_status_code": [(500,), (200, 404)],
    "min_attempts": [1, 3],
}


def drawn(rng, now) -> dict:
    """Draw filters: few at once, mostly, so that they match something."""
    given = {name: rng.choice(values) for name, values in CHOICES.items() if rng.random() < 0.3}
    begin = now - timedelta(seconds=rng.randrange(45 * 3600))
    given["from_"] = rng.choice([None, begin, start_of(begin)])
    given["to"] = rng.choice([None, begin + timedelta(seconds=rng.randrange(90_000))])
    return given


def fits(event, given) -> bool:
    """Tell by other means than MongoDB's whether an event matches."""
    for name, asked in given.items():
        if name == "min_attempts":
            fit = event["attempt_count"] >= asked
        elif name == "from_":
            fit = asked is None or event["received_at"] >= asked
        elif name == "to":
            fit = asked is None or event["received_at"] < asked
        else:
            fit = event.get(name) in asked
        if not fit:
            return False
    return True


def in_order(events, sort) -> list[str]:
    """Return the ids of events in an order."""
    fields = [field for field, _ in event_queries.SORTS[sort]]
    ordered = sorted(
        events, key=lambda each: [each[field] for field in fields], reverse=sort[0] == "-"
    )
    return [each["_id"] for each in ordered]


async def keep_all(store, now) -> None:
    """Keep what can be kept, one hour not wholly."""
    horizon = now - 20 * HOUR + timedelta(minutes=17)
    await store.rollups._keep([start_of(now) - n * HOUR for n in range(40, 19, -1)], horizon)


async def test_counts_are_exact_for_any_filters_before_while_and_after_hours_are_kept(
    store, db, now, history
):
    rng = random.Random(8)

    async def check() -> None:
        for _ in range(40):
            given = drawn(rng, now)
            expected = [each for each in history if fits(each, given)]
            wanted = event_queries.match(**given)
            counts = await store.rollups.counts(wanted)
            for name, key in (
                ("by_status", lambda each: each["status"]),
                ("by_event_type", lambda each: each["event_type"] or ""),
                ("histogram", lambda each: start_of(each["received_at"])),
            ):
                found = {each["_id"]: each["count"] for each in counts[name]}
                assert found == Counter(map(key, expected)), given
            assert await store.rollups.total(wanted) == len(expected)
            bin_ = rng.choice([bin_ for bin_ in histogram.BINS if bin_.length >= HOUR])
            bars = Counter()
            for at, status, count in await store.rollups.outcomes(wanted, bin_.unit, bin_.size):
                bars[histogram.floor(at, bin_), status] += count
            assert bars == Counter(
                (histogram.floor(each["received_at"], bin_), each["status"]) for each in expected
            )

    await check()
    await keep_all(store, now)
    await check()
    assert await store.rollups.advance() > 0
    assert await store.rollups.advance() == 0
    await check()
    live = sum(each["status"] == Status.DELIVERING for each in history)
    assert live > 0
    assert await kept_alone(store, db) == len(history) - live


@pytest.mark.parametrize("few", [0, 200])
async def test_pages_are_the_same_however_much_is_kept(store, now, history, few, monkeypatch):
    """Whether kept counts say where to look or not, in every order, from any place on."""
    monkeypatch.setattr(rollups, "HOURS_AT_ONCE", (2, 5))
    monkeypatch.setattr(event_reader, "SPANS_AT_ONCE", 3)
    monkeypatch.setattr(event_reader, "FEW", few)
    rng = random.Random(9)

    async def check() -> None:
        for _ in range(60):
            given, sort = drawn(rng, now), rng.choice(list(event_queries.SORTS))
            ordered = in_order([each for each in history if fits(each, given)], sort)
            by_id = {each["_id"]: each for each in history}
            expected = [by_id[each] for each in ordered]
            skip = rng.choice([0, 0, 3, 30])
            after = None
            if expected and rng.random() < 0.5:
                place = rng.randrange(len(expected))
                after = event_queries.position_of(expected[place])
                expected = expected[place + 1 :]
            page, more = await store.reader.page(
                event_queries.match(**given),
                sort=sort,
                skip=skip,
                limit=20,
                after=after,
                include_payload=False,
            )
            ids = [each["_id"] for each in expected]
            assert [each["_id"] for each in page] == ids[skip : skip + 20], (given, sort, skip)
            assert more == (len(ids) > skip + 20)

    await check()
    await keep_all(store, now)
    await check()
    await store.rollups.advance()
    await check()


def _every(rng, store, now) -> list:
    """List what other replicas may do with the kept counts between two reads of one."""

    async def extend() -> None:
        last = rng.randrange(41)
        horizon = now - timedelta(minutes=rng.randrange(40 * 60))
        batch = [now - n * HOUR for n in range(40, last, -1) if now - n * HOUR < horizon]
        if batch:
            await store.rollups._keep(batch, horizon)

    async def reopen() -> None:
        await store.rollups.reopen([now - n * HOUR for n in range(41) if rng.random() < 0.5])

    async def find_too_many_kinds() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rollups, "MAX_KINDS", 2)
            await extend()

    return [extend, extend, reopen, find_too_many_kinds, store.rollups.forget]


@pytest.mark.parametrize("few", [0, 200])
async def test_pages_and_totals_agree_with_a_model_whatever_becomes_of_the_counts_meanwhile(
    store, now, history, few, monkeypatch
):
    """From the first page to the last, of any size, in any order."""
    monkeypatch.setattr(rollups, "HOURS_AT_ONCE", (2, 5))
    monkeypatch.setattr(event_reader, "SPANS_AT_ONCE", 3)
    monkeypatch.setattr(event_reader, "FEW", few)
    rng = random.Random(10)
    choices = _every(rng, store, now)
    some_time_ago = {"$set": {"reopened_at": now - HOUR}}
    kept_in = store.rollups._kept_in

    async def kept_in_and_changed(*span, **order):
        kept = await kept_in(*span, **order)
        if rng.random() < 0.3:
            await rng.choice(choices)()
        return kept

    monkeypatch.setattr(store.rollups, "_kept_in", kept_in_and_changed)
    for _ in range(40):
        await store.rollups._hours.update_many({}, some_time_ago)
        await choices[0]()
        given, sort = drawn(rng, now), rng.choice(list(event_queries.SORTS))
        expected = in_order([each for each in history if fits(each, given)], sort)
        wanted = event_queries.match(**given)
        limit = rng.choice([7, 20, 500])
        read, after, more = [], None, True
        while more:
            page, more = await store.reader.page(
                wanted, sort=sort, skip=0, limit=limit, after=after, include_payload=False
            )
            read += [each["_id"] for each in page]
            after = event_queries.position_of(page[-1]) if page else None
        assert read == expected, (given, sort, limit)
        assert await store.rollups.total(wanted) == len(expected), given


@pytest.mark.parametrize("sort", ["attempt_count", "-attempt_count"])
async def test_events_that_change_while_a_page_is_read_cost_it_no_others(
    store, db, history, sort, monkeypatch
):
    """Some are deleted, some attempted once more, after their places were found."""
    at = store.reader._at
    changed: set[str] = set()

    async def at_after_a_change(places, part, cut):
        if not changed:
            gone, first, last = places[3]["_id"], places[0]["_id"], places[-1]["_id"]
            changed.update({gone, first, last})
            await db.events.delete_one({"_id": gone})
            await db.events.update_many(
                {"_id": {"$in": [first, last]}}, {"$inc": {"attempt_count": 1}}
            )
        return await at(places, part, cut)

    monkeypatch.setattr(store.reader, "_at", at_after_a_change)
    read, after, more = [], None, True
    while more:
        page, more = await store.reader.page(
            event_queries.match(), sort=sort, skip=0, limit=20, after=after, include_payload=False
        )
        read += [each["_id"] for each in page]
        after = event_queries.position_of(page[-1]) if page else None
    others = [event_id for event_id in read if event_id not in changed]
    assert others == [each for each in in_order(history, sort) if each not in changed]
    assert len(read) == len(set(read))


async def test_where_no_kept_hour_has_an_event_none_is_looked_for(store, db, history):
    """Or the answer that nothing matches would take reading all."""
    await db.events.update_many({"status": "DELIVERING"}, {"$set": {"status": "DELIVERED"}})
    await store.rollups.advance()
    wanted = event_queries.match(source=["one"], destination=["none"])
    places = [spans async for spans, _ in store.rollups.where(wanted, newest_first=True)]
    assert len(places) == 1
    received = [each["received_at"] for each in history]
    assert not [at for at in received for begin, end in places[0] if begin <= at < end]


async def test_an_hour_of_too_many_kinds_is_counted_by_status_and_type_alone(
    store, db, now, monkeypatch
):
    monkeypatch.setattr(rollups, "MAX_KINDS", 2)
    for number in range(3):
        await put(db, now, source=f"source-{number}")
    await store.rollups._keep([now], now + timedelta(minutes=30))
    await put(db, now + timedelta(minutes=40), source="source-0")
    await store.rollups.advance()
    assert await kept_alone(store, db) == 4
    assert await total(store, source=("source-0",)) == 2
    page, _ = await store.reader.page(
        event_queries.match(source=["source-0"], min_attempts=1),
        skip=0,
        limit=5,
        after=None,
        include_payload=False,
    )
    assert len(page) == 2


async def test_an_hour_is_kept_up_to_the_margin_and_then_further(store, db, now):
    for minute in (1, 20, 40):
        await put(db, now + timedelta(minutes=minute))
    for minute, kept in ((0, 0), (30, 2), (60, 3)):
        await store.rollups._keep([now], now + timedelta(minutes=minute))
        assert await kept_alone(store, db) == kept
        assert await total(store) == 3


async def test_what_is_younger_than_the_margin_is_not_kept(store, db):
    await put(db, datetime.now(UTC) - rollups.MARGIN + timedelta(seconds=61))
    await put(db, datetime.now(UTC) - rollups.MARGIN - timedelta(seconds=61))
    await store.rollups.advance()
    assert await kept_alone(store, db) == 1
    assert await total(store) == 2


async def test_an_hour_with_a_live_event_is_kept_once_that_is_final(store, db, now):
    event_id = await put(db, now, Status.RECEIVED)
    await put(db, now)
    await store.rollups.advance()
    assert await kept_alone(store, db) == 0
    await db.events.update_one({"_id": event_id}, {"$set": {"status": "DELIVERED"}})
    await store.rollups.advance()
    assert await kept_alone(store, db) == 2


async def test_a_backlog_is_not_counted_again_and_again(store, db, now, monkeypatch):
    """Counting would be for nothing, and cost about a second for a million events."""
    counted = []
    tally = store.rollups._tally

    async def noted(pipeline):
        spans = [each["received_at"] for each in pipeline[0]["$match"]["$or"]]
        counted.extend((span["$gte"], span["$lt"]) for span in spans)
        return await tally(pipeline)

    monkeypatch.setattr(store.rollups, "_tally", noted)
    for number in range(20):
        await put(db, now + timedelta(minutes=number), Status.DELIVERING)
    await put(db, now - 5 * HOUR)
    await store.rollups.advance()
    assert any(begin <= now - 5 * HOUR < end for begin, end in counted)
    assert not any(begin < now + HOUR and end > now for begin, end in counted)


async def test_a_reopened_hour_is_counted_anew_and_not_kept_for_a_while(store, db, now):
    event_id = await put(db, now)
    await put(db, now + HOUR)
    await store.rollups.advance()
    assert await kept_alone(store, db) == 2
    await store.rollups.reopen([now + timedelta(minutes=1)])
    await db.events.update_one({"_id": event_id}, {"$set": {"status": "DELIVERING"}})
    assert await total(store, status=("DELIVERING",)) == 1
    await db.events.update_one({"_id": event_id}, {"$set": {"status": "DELIVERED"}})
    await store.rollups.advance()
    assert await kept_alone(store, db) == 1
    held_since = datetime.now(UTC) - rollups.HOLD - timedelta(seconds=1)
    await db.hour_kinds.update_one({"_id": now}, {"$set": {"reopened_at": held_since}})
    await store.rollups.advance()
    assert await kept_alone(store, db) == 2


async def test_a_reopening_while_an_hour_is_being_counted_prevails(store, db, now, monkeypatch):
    event_id = await put(db, now)
    tally = store.rollups._tally

    async def tally_and_replay(pipeline):
        counted = await tally(pipeline)
        await store.rollups.reopen([now])
        await db.events.update_one({"_id": event_id}, {"$set": {"status": "DELIVERING"}})
        return counted

    monkeypatch.setattr(store.rollups, "_tally", tally_and_replay)
    await store.rollups.advance()
    monkeypatch.undo()
    assert await total(store, status=("DELIVERING",)) == 1


async def test_control_without_reopening_the_kept_count_is_wrong(store, db, now):
    event_id = await put(db, now)
    await store.rollups.advance()
    await db.events.update_one({"_id": event_id}, {"$set": {"status": "DELIVERING"}})
    assert await total(store, status=("DELIVERING",)) == 0


async def test_replicas_that_count_the_same_hours_count_them_once(store, db, now, monkeypatch):
    await put(db, now)
    tally = store.rollups._tally
    other = rollups.Rollups(store._mongo)

    async def tally_twice(pipeline):
        counted = await tally(pipeline)
        await other.advance()
        return counted

    monkeypatch.setattr(store.rollups, "_tally", tally_twice)
    await store.rollups.advance()
    monkeypatch.undo()
    assert await kept_alone(store, db) == 1


async def test_a_replica_that_is_behind_does_not_count_again_what_another_has(
    store, db, now, monkeypatch
):
    """It looked at an hour before the other extended it further than its own horizon."""
    await put(db, now + timedelta(minutes=20))
    has_live = store.rollups._has_live
    other = rollups.Rollups(store._mongo)

    async def look_and_lag(span):
        await other._keep([now], now + timedelta(minutes=21))
        return await has_live(span)

    monkeypatch.setattr(store.rollups, "_has_live", look_and_lag)
    await store.rollups._keep([now], now + timedelta(minutes=10))
    assert await total(store) == 1
    await store.rollups.advance()
    assert await total(store) == 1


async def test_what_is_forgotten_while_a_replay_is_on_its_way_is_not_counted_before(store, db, now):
    event_id = await put(db, now)
    await store.rollups.reopen([now])
    await store.rollups.forget()
    await store.rollups.advance()
    await db.events.update_one({"_id": event_id}, {"$set": {"status": "DELIVERING"}})
    assert await total(store, status=("DELIVERING",)) == 1


async def test_an_insert_that_took_long_reopens_its_hour(store, db, monkeypatch):
    await store.writer.insert([new_event()])
    assert await db.hour_kinds.count_documents({}) == 0
    monkeypatch.setattr(rollups, "MARGIN", timedelta(0))
    await store.writer.insert([new_event()])
    assert await db.hour_kinds.count_documents({"reopened_at": {"$exists": True}}) == 1


async def test_an_hour_of_too_many_types_is_counted_each_time(store, db, now, monkeypatch):
    monkeypatch.setattr(rollups, "MAX_PAIRS", 2)
    for kind in "abc":
        await put(db, now, kind=kind)
    await store.rollups.advance()
    assert await kept_alone(store, db) == 0
    assert await total(store) == 3


REPLAY = Instruction(Action.REPLAY, "r", "ann", "127.0.0.1")


async def replay_one(store, event_id):
    await store.bulk_actions.one(event_id, REPLAY)


async def replay_in_bulk(store, _):
    await store.bulk_actions.start(
        REPLAY, wanted='{"event_type": "a"}', limit=1, per_second=None, matched=1
    )
    taken = await store.bulk_actions.take("w")
    while await store.bulk_actions.step(taken):
        pass


@pytest.mark.parametrize("replay", [replay_one, replay_in_bulk])
async def test_a_replay_reopens_the_hours_of_its_events(store, db, now, replay):
    event_id = await put(db, now)
    await put(db, now + HOUR)
    await store.rollups.advance()
    await replay(store, event_id)
    await store.rollups.advance()
    assert await total(store) == 2
    assert await total(store, status=("DELIVERED",)) == 1
    assert await total(store, status=("RECEIVED", "DELIVERING")) == 1


async def test_hours_in_which_events_may_have_been_deleted_are_not_trusted(store, db, now):
    """What MongoDB deletes on its own is not counted any more, and nothing else is missed."""
    old, young = await put(db, now - 50 * HOUR), await put(db, now - 10 * HOUR)
    late = await put(db, now - 50 * HOUR)
    await store.rollups.advance()
    await store.keep_for(1)
    await db.events.delete_one({"_id": old})
    await store.rollups.advance()
    assert await total(store) == 2
    assert await kept_alone(store, db) == 1
    await db.events.delete_many({"_id": {"$in": [young, late]}})
    await store.keep_for(None)
    await store.rollups.advance()
    assert await total(store) == 0


async def test_an_hour_is_dropped_only_after_everybody_has_ceased_to_trust_it(store, db):
    """Or who has begun to read it would take it for one without events."""
    store.rollups.keep_for(24 * 3600)
    since = await store.rollups._whole_since()
    old, lately_trusted = since - 2 * HOUR, since - HOUR
    await db.hour_kinds.insert_many([{"_id": old}, {"_id": lately_trusted}])
    await store.rollups.advance()
    assert await db.hour_kinds.distinct("_id") == [lately_trusted]


async def test_control_were_they_trusted_deleted_events_would_be_counted(store, db, now):
    old = await put(db, now - 50 * HOUR)
    await store.rollups.advance()
    await db.events.delete_one({"_id": old})
    assert await total(store) == 1
