"""The rate limit on a real Redis: the slots that many dispatchers get together."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from tests.grants import recording_grants
from tests.support import most_in_any_second
from wds.delivery.rate_limiter import (
    KEY,
    KEY_OF_0_1,
    SPACING_US,
    USE_WITHIN_US,
    WINDOW_US,
    RateLimiter,
)
from wds.domain.errors import LimiterUnavailableError
from wds.local import embedded_engines

NAME = "default"


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Let a Redis that stalls answer late: these tests judge its answers."""
    monkeypatch.setattr("wds.delivery.rate_limiter.TIMEOUT_S", 15.0)


@pytest.fixture
async def redis(settings):
    client = Redis.from_url(settings.redis_url)
    yield client
    await client.aclose()


def limiter_of(settings, limit: int, *, farthest_s: float = 1.5, database=None) -> RateLimiter:
    database = database or settings.mongo_db
    return RateLimiter(settings.redis_url, limit, database=database, farthest_s=farthest_s)


def key_of(settings) -> str:
    return KEY.format(database=settings.mongo_db, destination=NAME)


async def grants(settings, databases: list[str], limit: int, each: int) -> list[float]:
    """Let one limiter for each of `databases` make `each` reservations; return the instants."""
    limiters = [limiter_of(settings, limit, farthest_s=200, database=name) for name in databases]

    async def reserve(limiter: RateLimiter) -> list[float]:
        slots = []
        for number in range(each):
            slots += (await limiter.reserve(NAME, 1 + number % 3)).slots
        # A slot whose answer was too slow cannot be used.
        return [slot.ready_at for slot in slots if slot.ready_at <= slot.use_by]

    granted = await asyncio.gather(*map(reserve, limiters))
    for limiter in limiters:
        await limiter.close()
    return [instant for instants in granted for instant in instants]


@pytest.mark.alone
@pytest.mark.parametrize("limit", [1, 3, 50])
async def test_limiters_of_one_database_together_grant_no_more_than_the_limit(settings, limit):
    instants = await grants(settings, [settings.mongo_db] * 5, limit, each=12)
    assert len(instants) >= 5 * 12 * 2 * 0.9
    assert most_in_any_second(instants) <= limit
    seconds_needed = (5 * 12 * 2 - 1) / limit
    assert max(instants) - min(instants) <= seconds_needed / 0.95


async def test_control_limiters_of_separate_databases_exceed_the_limit_together(settings):
    separate = [f"{settings.mongo_db}-{number}" for number in range(5)]
    assert most_in_any_second(await grants(settings, separate, 3, each=12)) > 3


async def test_reserve_spaces_slots_up_to_the_limit_and_then_one_window_apart(limiter):
    first = await limiter.reserve(NAME, 4)
    now, second, third, fourth = (slot.ready_at for slot in first.slots)
    assert second - now == pytest.approx(SPACING_US / 1e6, abs=1e-6)
    assert third - second == pytest.approx(SPACING_US / 1e6, abs=1e-6)
    assert fourth - now == pytest.approx(WINDOW_US / 1e6, abs=1e-6)


@pytest.mark.parametrize("limit", [50, 200])
async def test_reserve_spreads_the_slots_of_a_high_limit_over_the_window(settings, limit):
    limiter = limiter_of(settings, limit)
    slots = (await limiter.reserve(NAME, limit + 1)).slots
    await limiter.close()
    gaps = [later.ready_at - slot.ready_at for slot, later in pairwise(slots)]
    share = WINDOW_US / 1e6 / limit
    assert min(gaps) == pytest.approx(min(SPACING_US / 1e6, share), abs=2e-6)
    assert slots[-1].ready_at - slots[0].ready_at == pytest.approx(WINDOW_US / 1e6, abs=1e-6)


async def test_reserve_grants_no_slot_beyond_farthest_s_and_says_when_to_retry(limiter):
    granted = await limiter.reserve(NAME, 100)
    ahead = max(slot.ready_at for slot in granted.slots) - time.monotonic()
    assert ahead <= 1.5
    assert len(granted.slots) == 6  # now, and one window from now
    assert 0 < granted.retry_in_s <= WINDOW_US / 1e6
    again = await limiter.reserve(NAME, 1)
    assert again.slots == []


async def test_reserve_grants_a_slot_that_was_given_back_to_the_next(limiter):
    first = await limiter.reserve(NAME, 3)
    kept = await limiter.reserve(NAME, 1, give_back=first.slots[:1])
    assert kept.slots[0].ready_at - time.monotonic() < 0.5
    instants = [slot.ready_at for slot in (*first.slots[1:], *kept.slots)]
    more = await limiter.reserve(NAME, 1)
    assert most_in_any_second([*instants, more.slots[0].ready_at]) <= 3


async def test_reserve_holds_the_limit_however_many_slots_are_given_back(limiter):
    """Hand back every other slot, over and over: those kept must still obey the limit."""
    kept: list[float] = []
    back = []
    for number in range(40):
        granted = await limiter.reserve(NAME, 1, give_back=back)
        back = []
        for slot in granted.slots:
            if number % 2:
                kept.append(slot.ready_at)
            else:
                back.append(slot)
        if not granted.slots:
            await asyncio.sleep(granted.retry_in_s)
    assert len(kept) >= 6
    assert most_in_any_second(kept) <= 3


async def test_recording_has_the_slots_that_were_granted_and_not_given_back(settings, limiter):
    async with recording_grants(settings.redis_url, settings.mongo_db) as recorded:
        first = (await limiter.reserve(NAME, 3)).slots
        await limiter.reserve("other", 3)
        assert len(await recorded.instants()) == 3
        more = (await limiter.reserve(NAME, 1, give_back=first[1:])).slots
        assert len(more) == 1
        kept = await recorded.instants()
    assert len(kept) == 2
    apart = more[0].ready_at - first[0].ready_at
    assert kept[1] - kept[0] == pytest.approx(apart, abs=0.05)


@pytest.mark.parametrize("limit", [3, 4])
async def test_control_recording_shows_one_grant_too_many_in_a_second(settings, limit):
    async with recording_grants(settings.redis_url, settings.mongo_db) as recorded:
        await grants(settings, [settings.mongo_db] * 5, limit, each=4)
        assert most_in_any_second(await recorded.instants()) == limit


async def test_slot_whose_answer_was_slow_cannot_be_used(limiter, redis):
    await redis.execute_command("CLIENT", "PAUSE", 100, "ALL")
    [slot] = (await limiter.reserve(NAME, 1)).slots
    assert slot.use_by < slot.ready_at
    prompt = [(await limiter.reserve(f"{NAME}-{n}", 1)).slots[0] for n in range(9)]
    assert max(slot.use_by - slot.ready_at for slot in prompt) > USE_WITHIN_US / 1e6 / 2


async def test_reserve_takes_one_round_trip_for_many_slots(limiter, redis):
    await limiter.reserve(NAME, 1)
    before = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    await limiter.reserve(NAME, 5)
    after = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert after - before == 1


async def test_reserve_loads_a_flushed_script_again(limiter, redis):
    await limiter.reserve(NAME, 1)
    await redis.script_flush()
    assert len((await limiter.reserve(NAME, 1)).slots) == 1


async def test_reserve_expires_the_key_when_its_slots_no_longer_matter(settings, limiter, redis):
    await limiter.reserve(NAME, 1)
    remaining = await redis.pttl(key_of(settings))
    assert 0 < remaining <= (2 * WINDOW_US + 1_500_000) / 1000 + 1


async def test_reserve_forgets_slots_from_before_redis_clock_stepped_back(settings, limiter, redis):
    in_an_hour = time.time() * 1e6 + 3600e6
    await redis.zadd(key_of(settings), {f"old:{n}": in_an_hour for n in range(3)})
    granted = await limiter.reserve(NAME, 1)
    assert len(granted.slots) == 1
    assert granted.slots[0].ready_at - time.monotonic() < 0.1


async def test_reserve_without_redis_grants_nothing():
    limiter = RateLimiter(
        f"redis://127.0.0.1:{embedded_engines.free_port()}/0", 3, database="wds", farthest_s=1
    )
    with pytest.raises(LimiterUnavailableError):
        await limiter.reserve(NAME, 1)
    with pytest.raises(LimiterUnavailableError):
        await limiter.ping()
    await limiter.close()


async def test_reserve_holds_the_limit_in_a_redis_without_free_memory(tmp_path):
    server = await embedded_engines.start_redis(tmp_path, extra=("--maxmemory", "1"))
    limiter = RateLimiter(f"redis://127.0.0.1:{server.port}/0", 3, database="wds", farthest_s=0.1)
    try:
        await limiter.ping()
        granted = [await limiter.reserve(NAME, 1) for _ in range(5)]
        assert sum(len(each.slots) for each in granted) == 3
    finally:
        await limiter.close()
        await server.stop()


async def test_limiters_of_one_database_share_one_limit(settings):
    first, second = limiter_of(settings, 3), limiter_of(settings, 3)
    granted = [await each.reserve(NAME, 6) for each in (first, second)]
    assert [len(each.slots) for each in granted] == [6, 0]
    await first.close()
    await second.close()


async def test_limiters_of_two_databases_on_one_redis_each_have_the_whole_limit(settings):
    names = (settings.mongo_db, f"{settings.mongo_db}-other")
    first, second = (limiter_of(settings, 3, database=name) for name in names)
    granted = [await each.reserve(NAME, 6) for each in (first, second)]
    assert [len(each.slots) for each in granted] == [6, 6]
    await first.close()
    await second.close()


async def redis_now_us(redis) -> int:
    seconds, microseconds = await redis.time()
    return seconds * 1_000_000 + microseconds


@pytest.fixture
async def old_slots(redis):
    """Grant three slots as version 0.1 did, under the key without the database's name."""
    now = await redis_now_us(redis)
    key = KEY_OF_0_1.format(destination="upgraded")
    await redis.zadd(key, {f"old:{n}": now + n for n in range(3)})
    await redis.pexpire(key, 10_000)
    yield
    await redis.delete(key)


@pytest.mark.usefixtures("old_slots")
async def test_reserve_counts_the_slots_that_version_0_1_granted(settings, limiter, redis):
    [slot] = (await limiter.reserve("upgraded", 1)).slots
    assert slot.ready_at - time.monotonic() > WINDOW_US / 1e6 / 2
    key = KEY.format(database=settings.mongo_db, destination="upgraded")
    assert 0 < await redis.pttl(key) <= 10_000


@pytest.mark.usefixtures("old_slots")
async def test_reserve_ignores_the_slots_of_version_0_1_once_there_are_new_ones(
    settings, limiter, redis
):
    key = KEY.format(database=settings.mongo_db, destination="upgraded")
    await redis.zadd(key, {"new:1": await redis_now_us(redis)})
    [slot] = (await limiter.reserve("upgraded", 1)).slots
    assert slot.ready_at - time.monotonic() < WINDOW_US / 1e6 / 2


@pytest.mark.usefixtures("old_slots")
async def test_control_without_the_key_of_version_0_1_its_slots_do_not_count(limiter, monkeypatch):
    monkeypatch.setattr("wds.delivery.rate_limiter.KEY_OF_0_1", "wds:unused:{destination}")
    [slot] = (await limiter.reserve("upgraded", 1)).slots
    assert slot.ready_at - time.monotonic() < WINDOW_US / 1e6 / 2


def test_both_keys_of_a_reservation_are_on_one_node_of_a_cluster():
    new = KEY.format(database="wds", destination="default")
    old = KEY_OF_0_1.format(destination="default")
    assert key_slot(new.encode()) == key_slot(old.encode())
